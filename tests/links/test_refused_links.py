"""What a caller must not do between blocks that are compiled one by one: refused with the reason,
and the picture is right."""

import warnings

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

import dit_cachegraph as dc
from dit_cachegraph.links.kinds import MAX_KINDS
from dit_cachegraph.links.placeholder import can_forbid_access
from links.linked import SwitchedDiT, call, compile_blocks, watch
from support.toy_dits import GatedBlock, toy_inputs
from support.toy_runs import NUM_WATCHED, toy_steps

REFUSED = {
    "scales": "the code between blocks.3 and blocks.4 reads what the first of them returned",
    "writes": "the code between blocks.3 and blocks.4 reads what the first of them returned",
    "reads": "the code between blocks.3 and blocks.4 reads what the first of them returned",
    "collects": "what blocks.0 returned is kept by the caller",
    "adds the last but one": "what blocks.4 returned is kept by the caller",
    "writes to the conditioning": "the code between blocks.3 and blocks.4 writes to what both",
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


@pytest.mark.skipif(can_forbid_access(), reason="there a write to a placeholder raises by itself")
def test_without_counted_writes_it_is_refused() -> None:
    model, eager = SwitchedDiT(), SwitchedDiT()
    compile_blocks(model)
    inputs = toy_inputs(80.0)
    with torch.inference_mode(), pytest.warns(dc.NotCachedWarning, match="nobody counts writes"):
        torch.testing.assert_close(model(**inputs), eager(**inputs))


@pytest.mark.parametrize("rule", ["teacache", "seacache", "easycache"])
def test_a_rule_that_needs_the_whole_graph_is_refused(rule: str) -> None:
    model = SwitchedDiT()
    compile_blocks(model)
    watch(model)
    call(model, toy_inputs(30.0))
    with pytest.raises(dc.InvalidConfig, match="compiled one by one"):
        dc.configure(model, rule=rule)


def test_a_control_that_enters_a_block_is_refused() -> None:
    model, eager = ControlledDiT(), ControlledDiT()
    compile_blocks(model)
    for i in range(NUM_WATCHED):
        call(model, toy_inputs(80.0 - 10 * i))
    inputs = toy_inputs(30.0)
    with pytest.warns(dc.NotCachedWarning, match="blocks.1 is given a control"):
        torch.testing.assert_close(call(model, inputs), call(eager, inputs))


def test_a_block_that_draws_is_refused() -> None:
    model = SwitchedDiT()
    model.blocks = torch.nn.ModuleList(NoisyBlock() for _ in range(4))
    compile_blocks(model)
    with pytest.warns(dc.NotCachedWarning, match="draws random numbers"):
        call(model, toy_inputs(80.0))


def test_calls_with_a_number_of_their_own_are_refused() -> None:
    """A timestep that is no tensor makes each call another kind."""
    model = NumberDiT()
    compile_blocks(model)
    with pytest.warns(dc.NotCachedWarning, match="differ in numbers that are no tensors"):
        for i in range(MAX_KINDS + 1):
            call(model, {"hidden_states": toy_inputs(0.0)["hidden_states"], "timestep": 90.0 - i})


def test_an_exception_in_a_watched_call_does_not_count() -> None:
    """Nothing of it stays on, though the traceback keeps its frames."""
    model = SwitchedDiT()
    compile_blocks(model, residual_diff_threshold=1.0)
    call(model, toy_inputs(80.0))
    call(model, toy_inputs(70.0))
    handle = model.blocks[4].register_forward_pre_hook(_fail)
    with pytest.raises(RuntimeError, match="in the middle") as kept:
        call(model, toy_inputs(60.0))
    handle.remove()
    watch(model)
    assert _get_current_dispatch_mode() is None
    assert kept.traceback
    for inputs in toy_steps([60.0, 50.0, 40.0]):
        call(model, inputs)
    assert [step.hit for step in dc.summary(model).steps[-2:]] == [True, True]


@pytest.mark.parametrize("inner_backend", ["eager", "inductor"])
def test_after_an_exception_in_a_watched_call_another_model_runs(inner_backend: str) -> None:
    """Its first block is called for the first time with the mode still on, that of the model which
    failed."""
    model, other = SwitchedDiT(), SwitchedDiT()
    for each in (model, other):
        compile_blocks(each, inner_backend)
    call(model, toy_inputs(80.0))
    call(model, toy_inputs(70.0))
    model.way, inputs = "fails", toy_inputs(80.0)
    with pytest.raises(RuntimeError, match="between two blocks") as kept:
        call(model, toy_inputs(60.0))
    torch.testing.assert_close(call(other, inputs), call(SwitchedDiT(), inputs))
    assert _get_current_dispatch_mode() is None
    assert kept.traceback


def _fail(*_: object) -> None:
    raise RuntimeError("in the middle")


class NoisyBlock(GatedBlock):
    """Draws at every call."""

    def forward(self, h: Tensor, temb: Tensor, e: Tensor | None = None) -> Tensor:
        return super().forward(h + 0.01 * torch.randn_like(h), temb, e)


class ControlledBlock(GatedBlock):
    """Adds what it is given."""

    def forward(self, h: Tensor, temb: Tensor, control: Tensor | None = None) -> Tensor:
        h = super().forward(h, temb)
        return h if control is None else h + control


class ControlledDiT(SwitchedDiT):
    """Each block is given a control of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.blocks = torch.nn.ModuleList(ControlledBlock() for _ in range(4))
        self.eval().requires_grad_(False)

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        controls = [0.1 * i * h for i in range(len(self.blocks))]
        for block, control in zip(self.blocks, controls, strict=True):
            h = block(h, temb, control)
        return h


class NumberDiT(SwitchedDiT):
    """Its timestep is a Python number."""

    def forward(
        self, hidden_states: Tensor, timestep: float, encoder_hidden_states: Tensor | None = None
    ) -> Tensor:
        batch = torch.full((len(hidden_states),), timestep)
        return super().forward(hidden_states, batch, encoder_hidden_states)
