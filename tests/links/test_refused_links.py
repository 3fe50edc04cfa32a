"""What a caller must not do between blocks that are compiled one by one: refused with the reason,
and the picture is right."""

import warnings

import pytest
import torch

import dit_cachegraph as dc
from links.linked import NUM_WATCHED, SwitchedDiT, call, compile_blocks
from support.toy_dits import toy_inputs
from support.toy_runs import toy_steps

REFUSED = {
    "scales": "the code between blocks.3 and blocks.4 reads what the first of them returned",
    "writes": "the code between blocks.3 and blocks.4 reads what the first of them returned",
    "reads": "the code between blocks.3 and blocks.4 reads what the first of them returned",
    "collects": "what blocks.3 returned is kept by the caller",
    "swapped": "blocks.3 is called after blocks.4, out of order",
    "twice": "blocks.0 is called after blocks.5, out of order",
}


@pytest.mark.parametrize("way", REFUSED)
def test_refused_with_the_reason(way: str) -> None:
    model, eager = SwitchedDiT(way=way), SwitchedDiT(way=way)
    compile_blocks(model, residual_diff_threshold=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", dc.NotCachedWarning)
        for i in range(NUM_WATCHED):
            inputs = toy_inputs(80.0 - 10 * i)
            torch.testing.assert_close(call(model, inputs), call(eager, inputs))
    with pytest.warns(dc.NotCachedWarning, match=REFUSED[way]):
        call(model, toy_inputs(30.0))
    for inputs in toy_steps([60.0, 50.0, 40.0]):
        torch.testing.assert_close(call(model, inputs), call(eager, inputs))
    report = dc.summary(model)
    assert not report.is_cached
    assert report.steps == ()
    (refusal,) = report.refusals
    assert REFUSED[way] in refusal
    assert 'call `model.compile(backend="cachedit")` on the whole model' in refusal
    with pytest.raises(dc.NotCached, match=REFUSED[way]):
        dc.check(model)


def test_the_neighbour_that_only_hands_on_is_cached() -> None:
    model = SwitchedDiT()
    compile_blocks(model, residual_diff_threshold=1.0)
    for i in range(NUM_WATCHED):
        call(model, toy_inputs(80.0 - 10 * i))
        assert "not cached yet" in dc.summary(model).standing
    for inputs in toy_steps([60.0, 50.0, 40.0]):
        call(model, inputs)
    dc.check(model)
    assert [step.hit for step in dc.summary(model).steps] == [False, True, True]


def test_without_counted_writes_it_is_refused() -> None:
    model, eager = SwitchedDiT(), SwitchedDiT()
    compile_blocks(model)
    inputs = toy_inputs(80.0)
    with torch.inference_mode(), pytest.warns(dc.NotCachedWarning, match="nobody counts writes"):
        torch.testing.assert_close(model(**inputs), eager(**inputs))


def test_a_rule_that_needs_the_whole_graph_is_refused() -> None:
    model = SwitchedDiT()
    compile_blocks(model)
    for i in range(NUM_WATCHED):
        call(model, toy_inputs(80.0 - 10 * i))
    call(model, toy_inputs(30.0))
    with pytest.raises(dc.InvalidConfig, match="compiled one by one"):
        dc.configure(model, rule="teacache")
