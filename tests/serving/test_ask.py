"""What is asked for comes out as it was sent."""

import json

import pytest

from dit_cachegraph.serving.ask import parse
from dit_cachegraph.serving.limits import Limits, Refused

PROMPTS = {
    "a joined emoji": "a \U0001f468\u200d\U0001f467 at a lake",
    "Persian": "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    "lines": "a circle\n\ton red\r\n",
}


@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_in_any_script(name: str) -> None:
    body = json.dumps({"prompt": PROMPTS[name]}).encode()
    assert parse(body, Limits()).prompt == PROMPTS[name]


@pytest.mark.parametrize("character", ["\u200b", "\u2066", "\ufeff", "\x7f"])
def test_what_else_is_invisible_is_refused(character: str) -> None:
    with pytest.raises(Refused, match="no character of a text"):
        parse(json.dumps({"prompt": f"red{character}circle"}).encode(), Limits())
