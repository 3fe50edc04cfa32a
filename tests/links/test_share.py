"""Blocks that are joined are the trunk, or none: what they do of the work of all blocks."""

import pytest
import torch

import dit_cachegraph as dc
from links.linked import SwitchedDiT, call, watch
from support.toy_runs import toy_steps

NUM_BLOCKS = 6
OPTIONS = {"inner_backend": "eager", "Fn_compute_blocks": 1, "residual_diff_threshold": 1.0}


def compiled_in_part(num_compiled: int) -> SwitchedDiT:
    """As where Dynamo's limit leaves the later blocks to eager PyTorch."""
    model = SwitchedDiT(NUM_BLOCKS)
    for block in list(model.blocks)[:num_compiled]:
        block.compile(backend="cachedit", options={**OPTIONS, "max_warmup_steps": 0})
    watch(model)
    return model


def test_most_of_them_are_the_trunk_and_the_share_is_told() -> None:
    model = compiled_in_part(4)
    for inputs in toy_steps([60.0, 50.0]):
        call(model, inputs)
    assert [step.hit for step in dc.summary(model).steps] == [False, True]
    (graph,) = dc.summary(model).graphs
    assert graph.share_of_work == pytest.approx(4 / NUM_BLOCKS)
    assert graph.share_skipped == pytest.approx(3 / NUM_BLOCKS)
    assert "a hit skips 50% of the work of its blocks" in str(graph)


def test_all_of_them() -> None:
    model = compiled_in_part(NUM_BLOCKS)
    for inputs in toy_steps([60.0, 50.0]):
        call(model, inputs)
    (graph,) = dc.summary(model).graphs
    assert graph.share_of_work == 1.0
    assert graph.share_skipped == pytest.approx(5 / NUM_BLOCKS)


def test_few_of_them_are_refused_with_both_shares() -> None:
    model, eager = compiled_in_part(2), SwitchedDiT(NUM_BLOCKS)
    (inputs,) = toy_steps([60.0])
    with pytest.warns(dc.NotCachedWarning, match="do 33% of the work of its blocks and hold 3"):
        torch.testing.assert_close(call(model, inputs), call(eager, inputs))
    with pytest.raises(dc.NotCached, match=r"blocks\.0 to blocks\.1.*so they are not its trunk"):
        dc.check(model)
