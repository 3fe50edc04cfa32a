"""The gallery: what it shows, and that a browser loads all of it without a word of complaint."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

# The bench is no installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.gallery import __main__ as gallery
from bench.gallery.images import curve_svg, difference, film_strip
from bench.gallery.page import Column, Table, page
from bench.quality.draw import Drawn
from bench.quality.methods import all_methods
from bench.quality.models import MODELS
from bench.quality.rows import Key, Row, append_row
from bench.train.scenes import SCENES

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)

# Runs before anything else of the page, and leaves what it saw where --dump-dom shows it.
PROBE = """<script>
const seen = {errors: [], pictures: 0, loaded: 0};
const note = (event) => seen.errors.push(event.message || event.violatedDirective || event.type);
addEventListener("error", note, true);
addEventListener("unhandledrejection", note);
addEventListener("securitypolicyviolation", note);
addEventListener("load", () => {
  document.querySelectorAll("img.candidate").forEach((picture) => {
    for (const name of ["pointerdown", "pointerup"]) picture.dispatchEvent(new Event(name));
  });
  for (const picture of document.images) {
    seen.pictures += 1;
    seen.loaded += picture.complete && picture.naturalWidth > 0;
  }
  document.body.dataset.seen = JSON.stringify(seen);
});
</script>"""


def table_of(shape, num_prompts=2):
    torch.manual_seed(0)
    uncached, candidate = torch.rand(2, num_prompts, *shape)
    columns = [
        Column("uncached", Drawn(uncached, 1.0)),
        Column("a <b> & c", Drawn(candidate, 0.5, [[1.0, 0.0]] * 2, [[None, 0.25]] * 2)),
        Column("nothing changed", Drawn(uncached, 0.5, [[1.0, 0.0]] * 2)),
    ]
    return Table("a model", [f"prompt {i}" for i in range(num_prompts)], columns)


def opened(html, folder):
    path = folder / "index.html"
    assert "<head>\n" in html
    path.write_text(html.replace("<head>\n", f"<head>\n{PROBE}\n", 1))
    # No sandbox: as root, and in a container, it would not start with one.
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command = [BROWSER, *flags, "--virtual-time-budget=5000", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    (found,) = re.findall(r'data-seen="([^"]*)"', done.stdout)
    return json.loads(found.replace("&quot;", '"'))


needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium is installed: on Debian, apt-get install chromium"
)


@needs_browser
def test_a_browser_loads_every_picture_and_nothing_throws(tmp_path):
    tables = [table_of((3, 16, 16)), table_of((8, 3, 8, 8))]
    # Per prompt the uncached picture, and of two methods a picture and its difference.
    assert opened(page(tables, "x"), tmp_path) == {"errors": [], "pictures": 20, "loaded": 20}


@needs_browser
@pytest.mark.parametrize(
    ("before", "after", "error"),
    [
        ("const own = picture.src;", "no.such.thing();", "Uncaught ReferenceError"),
        ("data:image/png;base64,", "data:image/png;base64,AAAA", "error"),
        ('src="data:', 'src="https://example.org/data:', "img-src"),
    ],
)
def test_the_probe_sees_what_is_wrong(before, after, error, tmp_path):
    html = page([table_of((3, 16, 16), num_prompts=1)], "x")
    assert before in html
    seen = opened(html.replace(before, after, 1), tmp_path)
    assert any(error in found for found in seen["errors"])
    assert seen["pictures"] == 5


def test_the_page_asks_nobody_for_anything():
    html = page([table_of((3, 16, 16))], "x")
    sources = re.findall(r"""(?:src|href|action)=["']([^"']*)""", html)
    assert len(sources) == 10 and all(source.startswith("data:image/png") for source in sources)
    assert "url(" not in html and "@import" not in html


def test_the_page_says_share_and_decibels():
    html = page([table_of((3, 16, 16))], "half & half")
    assert "a &lt;b&gt; &amp; c" in html and "half &amp; half" in html
    assert "<small>50% of the blocks, equal</small>" in html
    assert html.count("<title>up to 0.25</title>") == 2


def test_a_column_says_the_mean_over_the_pictures_that_differ():
    flat = torch.full((2, 3, 16, 16), 0.5)
    drawn = flat.clone()
    drawn[0] += 0.1
    columns = [Column("uncached", Drawn(flat, 1.0)), Column("half", Drawn(drawn, 0.5))]
    html = page([Table("a model", ["one", "two"], columns)], "x")
    assert "<small>50% of the blocks, 20.0 dB</small>" in html
    assert "<small>20.0 dB</small>" in html and "<small>equal</small>" in html


def test_a_difference_is_enlarged_and_bounded():
    one, other = torch.tensor([0.5, 0.5, 1.0]), torch.tensor([0.5, 0.4, 0.0])
    assert difference(one, other).tolist() == pytest.approx([0.0, 0.5, 1.0])


def test_a_film_strip_has_lines_of_four_frames():
    clip = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 2, 2)[:4]
    strip = film_strip(torch.cat([clip, clip]))
    assert strip.shape == (3, 6, 12)
    assert strip[0, 0].tolist() == [0, 0, 1, 1, 1, 1, 2, 2, 1, 3, 3, 1]


def test_a_curve_has_a_bar_a_step():
    svg = curve_svg([1.0, 0.5, 0.0], [None, 0.2, 0.1])
    assert [float(h) for h in re.findall(r'height="([\d.]+)"/', svg)] == [36.0, 18.0, 0.0]
    assert "polyline" in svg and "polyline" not in curve_svg([1.0], [None])


def row(method, group, share, steps=28):
    key = Key("m", "v", steps, 4, 2, method)
    return Row(key, group, share, 40.0, 38.0, 0.9, 35.0, 0.9, {"a": 1.0}, 7.0, 1.0, "machine")


def test_of_each_kind_the_nearest_to_the_share_is_shown():
    rows = [
        row("ours F1B0 R0.1", "ours, threshold", 0.6),
        row("ours F1B0 R0.2", "ours, threshold", 0.45),
        row("ours F1B0 R0.3", "ours, threshold", 0.5, steps=50),
        row("diffusers MagCache 0.06", "diffusers, MagCache", 0.7),
        row("no longer measured", "ours, DBPrune", 0.5),
    ]
    chosen = gallery.chosen_methods(rows, 0.5, 28)
    assert [method.name for method in chosen] == ["ours F1B0 R0.2"]


@pytest.mark.slow
@pytest.mark.e2e
def test_methods_are_drawn_prompt_by_prompt():
    methods = {method.name: method for method in all_methods()}
    chosen = [methods[name] for name in ("ours preset fast", "ours W6 every 2", "euler 0.5")]
    table = gallery.draw_table(MODELS["flux-scenes"], chosen, 2, 8)
    assert table.title == "flux-scenes, guidance 1, 8 steps"
    names = ["uncached", "ours preset fast", "ours W6 every 2", "euler 0.5"]
    assert [column.name for column in table.columns] == names
    uncached, _, mask, fewer = (column.drawn for column in table.columns)
    assert mask.curves == [pytest.approx([1.0] * 6 + [1 / 12, 1.0])] * 2
    assert fewer.curves == [(1.0,) * 4] * 2
    assert len(page([table], "x").split("data:image/png")) - 1 == 2 * (1 + 2 * 3)
    assert not torch.equal(mask.pictures[0], uncached.pictures[0])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The page that the command writes for one prompt of a model with few rows."""
    folder = tmp_path_factory.mktemp("gallery")
    for kept in (
        row("ours W6 every 2 order 1", "ours, even mask order 1", 0.64),
        row("ours F1B0 R0.1", "ours, threshold", 0.95),
        row("euler 0.61", "fewer steps, euler", 0.61),
    ):
        append_row(folder / "flux-scenes.jsonl", kept)
    where = ["--rows", str(folder), "--out", str(folder / "new" / "out")]
    gallery.main(["--models", "flux-scenes", "--prompts", "1", "--share", "0.6", *where])
    return (folder / "new" / "out" / "index.html").read_text(encoding="utf-8")


@pytest.mark.e2e
def test_the_command_writes_a_column_for_each_row_near_the_share(written):
    assert re.findall(r"<h2>(.*?)</h2>", written) == ["flux-scenes, guidance 1, 28 steps"]
    heads = re.findall(r"<th><b>(.*?)</b>", written)
    assert heads == ["uncached", "ours W6 every 2 order 1", "euler 0.61"]
    prompts = re.findall(r"<tr><th>([^<]+)</th>", written)
    assert prompts == [SCENES.prompt(MODELS["flux-scenes"].picks[0])]
    assert "about 60% of the blocks" in written
    assert "<small>61% of the blocks" in written


@needs_browser
@pytest.mark.e2e
def test_a_browser_loads_every_picture_of_the_page_that_the_command_writes(written, tmp_path):
    assert opened(written, tmp_path) == {"errors": [], "pictures": 5, "loaded": 5}
