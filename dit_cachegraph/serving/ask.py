"""What a client asks for, checked before anything else sees it."""

import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import NoReturn

from dit_cachegraph.policy.presets import DEFAULT_PRESET, PRESETS
from dit_cachegraph.serving.limits import Limits, Refused

UNCACHED = "uncached"
_CHOICES = (*PRESETS, UNCACHED)
_MAX_SEED = 2**63 - 1
_MAX_SIDE = 16384
_SHOWN_CHARS = 40
# Of the invisible characters: two by which Persian and Indic scripts are spelled, and emoji joined.
_TAKEN = "\t\n\r\u200c\u200d"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One picture. `preset` is one of the cache, or "uncached"; `width` and `height` are pixels,
    None for the model's own; `stream` asks for events while it is drawn."""

    prompt: str
    preset: str = DEFAULT_PRESET
    num_steps: int = 28
    seed: int = 0
    width: int | None = None
    height: int | None = None
    stream: bool = False

    def settings(self, num_calls: int | None) -> dict[str, object]:
        """Those of its request, which calls the model so often, if that is known."""
        if self.preset == UNCACHED:
            return {"enabled": False}
        known = {} if num_calls is None else {"num_inference_steps": num_calls}
        return {"preset": self.preset, **known}


def parse(body: bytes, limits: Limits) -> Ask:
    """The ask that a body is.

    Raises:
        Refused: 400 where it is no JSON object, 422 for what is in it.
    """
    given = _object(body)
    names = [field.name for field in fields(Ask)]
    for name in given:
        if name not in names:
            _refuse(f"unknown field {_shown(name)}: known are {', '.join(names)}")
    if "prompt" not in given:
        _refuse("prompt is missing: say what to draw")
    return Ask(
        prompt=_prompt(given["prompt"], limits),
        preset=_choice(given.get("preset", DEFAULT_PRESET)),
        num_steps=_number(given, "num_steps", 28, 1, limits.max_steps),
        seed=_number(given, "seed", 0, 0, _MAX_SEED),
        width=_side(given, "width"),
        height=_side(given, "height"),
        stream=_flag(given.get("stream", False)),
    )


def _object(body: bytes) -> Mapping[str, object]:
    try:
        given = json.loads(body.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        why = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise Refused(400, f"the body is no JSON: {_shown(why, 120)}") from None
    if not isinstance(given, dict):
        raise Refused(400, f"the body must be a JSON object, got {_shown(given)}")
    return given


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _prompt(value: object, limits: Limits) -> str:
    if not isinstance(value, str) or not value.strip():
        _refuse(f"prompt must be text that says what to draw, got {_shown(value)}")
    if len(value) > limits.max_prompt_chars:
        _refuse(f"prompt has {len(value)} characters, at most {limits.max_prompt_chars} are taken")
    bad = [c for c in value if unicodedata.category(c)[0] == "C" and c not in _TAKEN]
    if bad:
        _refuse(f"prompt holds {_shown(bad[0])}, which is no character of a text")
    return value


def _choice(value: object) -> str:
    if not isinstance(value, str) or value not in _CHOICES:
        _refuse(f"preset must be one of {', '.join(_CHOICES)}, got {_shown(value)}")
    return value


def _number(
    given: Mapping[str, object], name: str, default: int, smallest: int, largest: int
) -> int:
    value = given.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not smallest <= value <= largest:
        _refuse(f"{name} must be an integer from {smallest} to {largest}, got {_shown(value)}")
    return value


def _side(given: Mapping[str, object], name: str) -> int | None:
    return None if given.get(name) is None else _number(given, name, 0, 1, _MAX_SIDE)


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        _refuse(f"stream must be true or false, got {_shown(value)}")
    return value


def _shown(value: object, num_chars: int = _SHOWN_CHARS) -> str:
    """A value as it may stand in a sentence: short, and plain ASCII."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > _MAX_SEED:
        return "an integer that is far too large"
    text = ascii(value)[: num_chars + 1]
    return text if len(text) <= num_chars else text[:num_chars] + "..."


def _refuse(sentence: str) -> NoReturn:
    raise Refused(422, sentence)
