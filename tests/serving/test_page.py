"""The page: in a browser where there is one; what is in it, without."""

import re
from html.parser import HTMLParser

import pytest

import dit_cachegraph as dc
from dit_cachegraph.serving.page import PAGE
from support.chromium import find_chromium, page
from support.serving_runs import until

pytestmark = pytest.mark.e2e
in_a_browser = pytest.mark.skipif(find_chromium() is None, reason="no Chromium is installed")


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def test_nothing_comes_from_outside(client):
    answer = client.ask("GET", "/")
    assert answer.body.decode() == PAGE
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    namespaces = ["http://www.w3.org/2000/svg"]
    assert re.findall(r"https?://[^\"' ]+", PAGE) == namespaces
    assert not [tag for tag, attributes in Tags(PAGE).found if "src" in attributes or tag == "link"]


def test_every_field_has_a_label():
    tags = Tags(PAGE).found
    labelled = {attributes["for"] for tag, attributes in tags if tag == "label"}
    fields = {a["id"] for tag, a in tags if tag in ("input", "select", "textarea")}
    assert labelled == fields == {"prompt", "preset", "steps", "seed", "key"}


@pytest.fixture(scope="module")
def browser(client):
    with page() as browser:
        yield browser


@pytest.fixture
def opened(browser, client):
    browser.open(f"http://127.0.0.1:{client.port}/")
    browser.until("document.getElementById('server').textContent === 'Ready.'")
    return browser


CAPTION = "document.querySelector('#{} figcaption').textContent"


@in_a_browser
def test_a_picture_by_keyboard_alone(opened, client):
    """Typed, drawn by Enter; its curve has a mark a step; uncached beside it."""
    assert opened.run("document.activeElement.id") == "prompt"
    opened.run("document.activeElement.select()")
    opened.type("a small red ring")
    opened.press("Tab")
    opened.press("Tab")
    assert opened.run("document.activeElement.id") == "steps"
    opened.run("document.activeElement.select()")
    opened.type("14")
    opened.press("Enter", "\r")
    opened.until(CAPTION.format("left") + ".includes('of 14 steps reused')")
    direct = client.generate(prompt="a small red ring", num_steps=14)
    hits = direct.headers["x-steps-reused"]
    assert opened.run(CAPTION.format("left")).startswith(f"balanced: {hits} of 14 steps reused")
    assert opened.run("document.getElementById('saved').textContent").startswith(f"{hits} of 14")
    for kind, count in (("reused", int(hits)), ("computed", 14 - int(hits))):
        assert opened.run(f"document.querySelectorAll('#curve .{kind}').length") == count
    assert opened.run("document.querySelectorAll('#rows tr').length") == 14
    shown = opened.run("document.querySelector('#left img').src")
    assert opened.run("document.querySelector('#left img').naturalWidth") == 64
    opened.run("document.getElementById('uncached').focus()")
    opened.press("Enter", "\r")
    opened.until(CAPTION.format("right") + ".startsWith('uncached: 0 of 14')")
    assert opened.run("document.querySelector('#right img').src") != shown
    assert opened.run("document.querySelector('#left img').src") == shown


@in_a_browser
def test_escape_stops(opened, studio):
    before = studio.num_calls
    opened.run("document.getElementById('steps').value = 100")
    opened.press("Enter", "\r")
    opened.until(CAPTION.format("left") + ".startsWith('step ')")
    opened.press("Escape")
    opened.until(CAPTION.format("left") + " === 'stopped'")
    until(lambda: dc.summary(studio.pipe).state_nbytes == 0)
    assert studio.num_calls - before < 100
    assert not opened.run("document.getElementById('draw').disabled")


@in_a_browser
def test_what_is_refused_is_shown(opened):
    opened.run("document.getElementById('prompt').value = '<b>a cat</b>'")
    opened.press("Enter", "\r")
    opened.until(CAPTION.format("left") + ".includes('names nothing that this model draws')")
    assert opened.run("document.querySelector('#left figcaption').className") == "error"
