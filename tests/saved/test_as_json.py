"""Frozen data as JSON and back: what comes back is equal, and what doesn't fit is refused."""

import json
from dataclasses import dataclass, replace

import pytest
import torch

from dit_cachegraph.plan import Block, ModulatedInput, Samples, StreamKind
from dit_cachegraph.saved.as_json import from_json, to_json


@dataclass(frozen=True)
class Everything:
    block: Block
    several: tuple[Block, ...]
    pair: tuple[int, str]
    samples: Samples
    found: ModulatedInput | str
    size: int | None
    kind: StreamKind
    settings: dict[str, object]


EVERYTHING = Everything(
    block=Block("blocks.0", 3, 17, "Block"),
    several=(Block("a", 0, 1, "A"), Block("b", 2, 3, "B")),
    pair=(1, "one"),
    samples=Samples(rows=frozenset((3, 1)), why_whole="since"),
    found=ModulatedInput((1, 2), None),
    size=None,
    kind=StreamKind(torch.bfloat16, torch.device("cuda", 1), 64),
    settings={"rule": "even", "every": 2, "mask": [1, 0]},
)


@pytest.mark.parametrize("value", [EVERYTHING, replace(EVERYTHING, found="none", size=4)])
def test_it_comes_back(value):
    assert from_json(Everything, json.loads(json.dumps(to_json(value)))) == value


@pytest.mark.parametrize(
    "change",
    [
        {"block": None},
        {"block": {"path": "a", "first": 0, "last": 1}},
        {"block": {"path": "a", "first": 0, "last": 1, "class_name": "A", "more": 1}},
        {"block": {"path": "a", "first": "0", "last": 1, "class_name": "A"}},
        {"block": {"path": "a", "first": True, "last": 1, "class_name": "A"}},
        {"several": {}},
        {"pair": [1]},
        {"found": 3},
        {"kind": ["nn", "cuda", 64]},
        {"kind": ["float32", "cuda"]},
        {"settings": []},
        {"size": 1.5},
    ],
    ids=str,
)
def test_what_doesnt_fit_is_refused(change):
    with pytest.raises(TypeError):
        from_json(Everything, {**to_json(EVERYTHING), **change})
