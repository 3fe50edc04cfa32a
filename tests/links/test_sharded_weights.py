"""Blocks of which each rank holds a part of the weights, and gathers them for as long as one runs
(`fully_shard`)."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

import dit_cachegraph as dc
from links.linked import SwitchedDiT, call, compile_blocks, watch
from support.toy_runs import toy_steps


@pytest.fixture(autouse=True)
def group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("is_late", [False, True])
def test_settings_and_report_are_those_of_the_model(is_late: bool) -> None:
    """Its weights are others while a block runs than those that it has between its calls."""
    model, plain = SwitchedDiT(), SwitchedDiT()
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)  # Else each block is the outermost, and keeps what it gathered.
    compile_blocks(model)
    if is_late:
        watch(model)
    dc.configure(model, rule="even", every=2, max_warmup_steps=1)
    if not is_late:
        watch(model)
    steps = toy_steps([60.0, 50.0, 40.0, 30.0])
    outputs = [call(model, step) for step in steps]
    report = dc.summary(model)
    assert [step.hit for step in report.steps] == [False, True, False, True]
    assert report.is_cached
    torch.testing.assert_close(outputs[2], call(plain, steps[2]))
    assert dc.reset(model).num_tracks == 1


def test_a_whole_model_is_known_between_its_calls() -> None:
    """Also where nobody asked for it before the first, when its weights were those of a call."""
    model = SwitchedDiT()
    around = Around(model)
    fully_shard(model)
    fully_shard(around)
    model.compile(backend="cachedit", options={"inner_backend": "eager"})
    first, *others = toy_steps([60.0, 50.0, 40.0, 30.0])
    call(around, first)
    dc.configure(model, rule="even", every=2, max_warmup_steps=1)
    for step in others:
        call(around, step)
    reasons = [step.reason for step in dc.summary(model).steps]
    assert reasons[2:] == ["every 2 steps", "hit, every 2 steps one computes"]
    assert dc.reset(model).num_tracks == 1


class Around(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.model(**inputs)


def test_what_is_around_the_model_has_its_settings() -> None:
    model = SwitchedDiT()
    compile_blocks(model)
    dc.configure(model, rule="even", every=2, max_warmup_steps=1)
    around = Around(model)
    watch(around)
    for step in toy_steps([60.0, 50.0]):
        call(around, step)
    for asked in (model, around):
        assert [step.hit for step in dc.summary(asked).steps] == [False, True]
