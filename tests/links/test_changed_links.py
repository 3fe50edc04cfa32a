"""A caller that changes after it was watched: the picture is right, or it is no picture at all."""

import logging
from collections.abc import Iterator

import pytest
import torch

import dit_cachegraph as dc
from dit_cachegraph.links.placeholder import can_forbid_access
from links.linked import SwitchedDiT, call, compile_blocks, linked, watch
from support.logged import logged
from support.toy_runs import toy_steps

SEEN = {
    "collects": "what a block before blocks.2 returned is kept by the caller",
    "swapped": "another block is called in the place of blocks.3",
}
RIGHT = ("collects", "swapped")


@pytest.fixture
def lines() -> Iterator[list[str]]:
    with logged(logging.WARNING) as found:
        yield found


@pytest.mark.parametrize("way", RIGHT)
def test_what_a_link_sees_is_made_good(way: str, lines: list[str]) -> None:
    (model, (third, fourth)), eager = linked(), SwitchedDiT(way=way)
    model.way = way
    torch.testing.assert_close(call(model, third), call(eager, third))
    (told,) = lines
    assert SEEN[way] in told
    with pytest.warns(dc.NotCachedWarning, match=SEEN[way]):
        torch.testing.assert_close(call(model, fourth), call(eager, fourth))
    report = dc.summary(model)
    assert [step.hit for step in report.steps] == [False, True]
    assert not report.is_cached
    assert any(SEEN[way] in refusal for refusal in report.refusals)


@pytest.mark.parametrize(
    "way",
    [
        "scales",
        "writes",
        "reads",
        "stops early",
        "writes to the conditioning, swapped",
        "writes to a weight, swapped",
        "moves weights away, swapped",
    ],
)
def test_what_no_link_sees_is_no_picture(way: str) -> None:
    """An error on a CUDA build, else NaN."""
    model, (third, _) = linked()
    model.way = way
    if can_forbid_access():
        with pytest.raises(RuntimeError, match="reads what dit_cachegraph has skipped"):
            call(model, third)
        return
    actual = call(model, third)
    if way == "reads":
        (read,) = model.seen
        assert torch.isnan(read)
    else:
        assert torch.isnan(actual).all()


def test_the_same_before_any_hit_computes() -> None:
    """Nothing was skipped in the step that sees it."""
    model, eager = SwitchedDiT(), SwitchedDiT(way="scales")
    compile_blocks(model, residual_diff_threshold=0.0)
    watch(model)
    model.way = "scales"
    first, second, *_ = toy_steps([60.0, 50.0, 40.0])
    for inputs in (first, second):
        torch.testing.assert_close(call(model, inputs), call(eager, inputs))
    assert dc.summary(model).steps == ()


@pytest.mark.parametrize("inner_backend", ["eager", "inductor"])
def test_a_block_that_the_first_calls_left_out_joins_later(inner_backend: str) -> None:
    """Its first call of all comes in the middle of a call that is watched."""
    model, eager = SwitchedDiT(way="leaves one out"), SwitchedDiT()
    compile_blocks(model, inner_backend, residual_diff_threshold=1.0)
    first, second, *others = toy_steps([90.0, 85.0, 80.0, 75.0, 70.0, 65.0, 60.0, 55.0])
    call(model, first)
    call(model, second)
    model.way = "plain"
    for inputs in others[:4]:
        torch.testing.assert_close(call(model, inputs), call(eager, inputs))
    for inputs in others[4:]:
        call(model, inputs)
    assert [step.hit for step in dc.summary(model).steps] == [False, True]


def test_another_caller_is_watched_by_itself() -> None:
    """Without text the blocks are other graphs, and the kind of call is another."""
    (model, (third, _)), eager = linked(), SwitchedDiT()
    inputs = {**third, "encoder_hidden_states": None}
    torch.testing.assert_close(call(model, inputs), call(eager, inputs))
    assert "not cached yet" in dc.summary(model).standing


def test_a_weight_that_is_written_computes() -> None:
    model, (third, _) = linked()
    with torch.no_grad():
        model.blocks[3].up.weight.mul_(2)
    eager = SwitchedDiT()
    eager.load_state_dict(model.state_dict())
    torch.testing.assert_close(call(model, third), call(eager, third))
    assert dc.summary(model).steps[-1].reason == "the weights changed"


def test_a_weight_that_is_replaced_computes() -> None:
    model, (third, _) = linked()
    model.blocks[3].up.weight = torch.nn.Parameter(2 * model.blocks[3].up.weight, False)
    eager = SwitchedDiT()
    eager.load_state_dict(model.state_dict())
    torch.testing.assert_close(call(model, third), call(eager, third))
    watch(model)
    assert call(model, third).isfinite().all()
    assert dc.summary(model).is_cached


def test_an_exception_in_the_middle_leaves_nothing() -> None:
    model, (third, fourth) = linked()
    before = dc.summary(model).steps

    def fails(*_: object) -> None:
        raise RuntimeError("in the middle")

    handle = model.blocks[5].register_forward_pre_hook(fails)
    with pytest.raises(RuntimeError, match="in the middle"):
        call(model, third)
    handle.remove()
    assert dc.summary(model).steps == before
    assert call(model, fourth).isfinite().all()


def test_arguments_in_another_order_are_the_same_request() -> None:
    """The text comes first, and has as many dimensions as the latents."""
    model = SwitchedDiT()
    compile_blocks(model, residual_diff_threshold=1.0)
    for inputs in toy_steps([80.0, 70.0, 65.0, 60.0, 50.0, 40.0]):
        call(model, {name: inputs[name] for name in reversed(inputs)})
    assert [step.hit for step in dc.summary(model).steps] == [False, True]
