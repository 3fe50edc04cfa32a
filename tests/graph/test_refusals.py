"""Models that run compiled and uncached: the sentence, the report, an output that is eager's all
the same; and next to each refusal the model that must be taken."""

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

import dit_cachegraph as dc
from support.tiny_models import FLUX
from support.toy_dits import GatedBlock, ReadingDiT, ToyDiT, adding_dit, gated_dit, toy_inputs
from support.toy_runs import assert_cached, assert_refused, compile_toy, once_more, run, toy_steps

NO_LIST = "calls no module of a list"
NO_GRAD = "gradients on, and the cache is for inference"


class OneModuleDiT(ToyDiT):
    """One block in no list, called once or several times."""

    def __init__(self, num_calls: int) -> None:
        torch.manual_seed(0)
        super().__init__([])
        self.block, self.num_calls = GatedBlock(), num_calls

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        for _ in range(self.num_calls):
            h = self.block(h, temb)
        return h


class SideBySideDiT(ToyDiT):
    """All blocks of the list read the same stream: none feeds the next."""

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        return torch.stack([block(h, temb) for block in self.blocks]).sum(dim=0)


def test_no_list() -> None:
    assert_refused(OneModuleDiT(num_calls=1), NO_LIST)


def test_one_module_called_several_times() -> None:
    assert assert_cached(OneModuleDiT(num_calls=3)).num_blocks == 3


@pytest.mark.parametrize(
    ("model", "seen"),
    [(gated_dit(1), "blocks x 1"), (SideBySideDiT([GatedBlock() for _ in range(3)]), "blocks x 3")],
    ids=["one block", "side by side"],
)
def test_no_chain_of_blocks(model: nn.Module, seen: str) -> None:
    assert_refused(model, rf"no list of at least two blocks.*seen: {seen}")


def test_two_blocks_are_enough() -> None:
    assert assert_cached(gated_dit(2)).num_blocks == 2


class BreakInLoopDiT(ToyDiT):
    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        for block in self.blocks:
            h = block(h, temb)
            torch._dynamo.graph_break()
        return h


class BreakBeforeTrunkDiT(ToyDiT):
    def forward(
        self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor | None = None
    ) -> Tensor:
        h = self.proj_in(hidden_states)
        torch._dynamo.graph_break()
        return self.proj_out(self.trunk(h, self.embed(timestep), encoder_hidden_states))


class BreakAfterTrunkDiT(ToyDiT):
    def forward(
        self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor | None = None
    ) -> Tensor:
        h = self.proj_in(hidden_states)
        h = self.trunk(h, self.embed(timestep), encoder_hidden_states)
        torch._dynamo.graph_break()
        return self.proj_out(h)


BREAKS_OUTSIDE = pytest.mark.parametrize("broken", [BreakBeforeTrunkDiT, BreakAfterTrunkDiT])


def hit_outside_break(compiled: nn.Module, model: nn.Module) -> dc.Report:
    """Three steps, the last a repeat of the second: the report, whose last step should be a hit."""
    steps = toy_steps([90.0, 60.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error", dc.NotCachedWarning)
        run(compiled, steps[0])
    for inputs in (steps[1], once_more(steps[1])):
        torch.testing.assert_close(run(compiled, inputs), run(model, inputs))
    return dc.summary(compiled)


def test_graph_break_between_the_blocks() -> None:
    """The blocks have a graph each, and are joined at run time once that was watched."""
    model = BreakInLoopDiT([GatedBlock() for _ in range(4)])
    compiled = compile_toy(model, residual_diff_threshold=1.0)
    for timestep in (80.0, 70.0, 60.0, 50.0):
        inputs = toy_inputs(timestep)
        torch.testing.assert_close(run(compiled, inputs), run(model, inputs))
    for inputs in toy_steps([60.0, 50.0, 40.0]):
        run(compiled, inputs)
    report = dc.summary(compiled)
    assert report.is_cached
    assert [graph.num_blocks for graph in report.graphs if graph.is_linked] == [4]
    assert report.steps[-1].hit


@BREAKS_OUTSIDE
def test_graph_break_outside_the_trunk(broken: type[ToyDiT]) -> None:
    model = broken([GatedBlock() for _ in range(4)])
    compiled = compile_toy(model)
    dc.configure(compiled, residual_diff_threshold=0.01)
    report = hit_outside_break(compiled, model)
    assert [graph.num_blocks for graph in report.graphs if not graph.refusals] == [4]
    assert report.steps[-1].hit
    assert len(report.refusals) == 1


@BREAKS_OUTSIDE
def test_graph_break_outside_the_trunk_of_a_model_not_seen_before(broken: type[ToyDiT]) -> None:
    model = broken([GatedBlock() for _ in range(4)])
    report = hit_outside_break(compile_toy(model, residual_diff_threshold=0.01), model)
    assert [graph.num_blocks for graph in report.graphs if not graph.refusals] == [4]
    assert report.steps[-1].hit


def test_gradients_are_eager_s() -> None:
    model, compiled_model = gated_dit(3), gated_dit(3)
    inputs = toy_inputs(90.0)
    compiled = compile_toy(compiled_model)
    with pytest.warns(dc.NotCachedWarning, match=NO_GRAD) as warned:
        compiled(**inputs).square().sum().backward()
        compiled(**toy_inputs(60.0))
    assert len([w for w in warned if w.category is dc.NotCachedWarning]) == 1
    model(**inputs).square().sum().backward()
    for (name, expected), actual in zip(
        model.named_parameters(), compiled_model.parameters(), strict=True
    ):
        torch.testing.assert_close(actual.grad, expected.grad, msg=lambda m, n=name: f"{n}: {m}")
    report = dc.summary(compiled)
    assert len(report.refusals) == 1
    assert re.search(NO_GRAD, report.refusals[0])
    assert report.steps == ()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_it_is_cached(mode: Callable[[], object]) -> None:
    model = gated_dit(3)
    compiled = compile_toy(model)
    with pytest.warns(dc.NotCachedWarning, match=NO_GRAD):
        compiled(**toy_inputs(90.0))
    inputs = toy_inputs(90.0)
    with mode():
        torch.testing.assert_close(compiled(**inputs), model(**inputs))
    report = dc.summary(compiled)
    assert [graph.num_blocks for graph in report.graphs] == [0, 3]
    assert len(report.steps) == 1


def test_compiled_block_by_block_by_another_backend() -> None:
    model = gated_dit(3)
    for block in model.blocks:
        block.compile(backend="eager")
    run(model, toy_inputs(90.0))
    report = dc.summary(model)
    (note,) = report.notes
    assert note.startswith("ToyDiT was compiled block by block (blocks.0 and 2 more)")
    assert 'call `model.compile(backend="cachedit")` on the whole transformer' in note
    assert note in str(report)


def test_compiled_as_a_whole_has_no_note() -> None:
    model = gated_dit(3)
    model.compile(backend="cachedit", options={"inner_backend": "eager"})
    run(model, toy_inputs(90.0))
    report = dc.summary(model)
    assert report.notes == ()
    assert report.graphs[0].num_blocks == 3


@pytest.mark.e2e
@pytest.mark.filterwarnings("ignore::dit_cachegraph.NotCachedWarning")
def test_diffusers_own_cache_is_named() -> None:
    model = FLUX.build(4)
    inputs = FLUX.make_inputs(model, batch=1, size=2, text_tokens=3, seed=0)
    model.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    compiled = compile_toy(model)
    with torch.no_grad(), model.cache_context("image"):
        compiled(**inputs)
    assert "disable_cache()" in str(dc.summary(compiled))


def test_cache_dits_cache_is_named() -> None:
    model = gated_dit(2)
    assert "cache_dit" not in str(dc.summary(model))
    model._is_cached = True  # what cache_dit.enable_cache leaves on a transformer (1.5.3)
    assert "call `cache_dit.disable_cache(pipe)` before you compile" in str(dc.summary(model))


@pytest.mark.e2e
def test_diffusers_own_cache_is_not_doubled() -> None:
    model, plain = FLUX.build(4), FLUX.build(4)
    inputs = FLUX.make_inputs(model, batch=1, size=2, text_tokens=3, seed=0)
    model.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    compiled = compile_toy(model)
    with (
        torch.no_grad(),
        model.cache_context("image"),
        pytest.warns(dc.NotCachedWarning, match="not cached"),
    ):
        actual = compiled(**inputs)[0]
    with torch.no_grad():
        torch.testing.assert_close(actual, plain(**inputs)[0])
    report = dc.summary(compiled)
    assert report.refusals
    assert report.steps == ()


@pytest.mark.e2e
def test_diffusers_own_cache_after_it_is_disabled() -> None:
    model = FLUX.build(4)
    inputs = FLUX.make_inputs(model, batch=1, size=2, text_tokens=3, seed=0)
    model.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    model.disable_cache()
    compiled = compile_toy(model)
    with torch.no_grad():
        torch.testing.assert_close(compiled(**inputs)[0], model(**inputs)[0])
    report = dc.summary(compiled)
    assert [graph.num_blocks for graph in report.graphs] == [4]
    assert report.refusals == ()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_step_that_is_not_finite_computes_and_later_steps_recover(bad: float) -> None:
    model = adding_dit(1, 2, 3)
    compiled = compile_toy(model, residual_diff_threshold=0.9)
    steps = toy_steps([90.0, 80.0, 70.0, 60.0, 50.0])
    steps[2]["hidden_states"][1, 0, 0] = bad
    for inputs in steps:
        actual = run(compiled, inputs)
        if not dc.summary(compiled).steps[-1].hit:
            torch.testing.assert_close(actual, run(model, inputs), equal_nan=True)
        assert actual.isfinite().all() == inputs["hidden_states"].isfinite().all()
    seen = dc.summary(compiled).steps
    # The step after the bad one has a bad probe to compare with; the one after that is a hit.
    assert [step.hit for step in seen] == [False, True, False, False, True]
    assert [step.reason for step in seen[2:4]] == ["diff is nan"] * 2
    assert not any(torch.isfinite(torch.tensor(step.diff)) for step in seen[2:4])


def test_large_finite_step_may_hit() -> None:
    compiled = compile_toy(adding_dit(1, 2, 3), residual_diff_threshold=0.9)
    steps = toy_steps([90.0, 80.0])
    steps[1]["hidden_states"] *= 1e3
    for inputs in steps:
        run(compiled, inputs)
    assert dc.summary(compiled).steps[-1].hit


class UnwrappingDiT(ReadingDiT):
    """Takes the text out of what holds it."""

    def forward(self, hidden_states, timestep, encoder_hidden_states):
        return super().forward(hidden_states, timestep, encoder_hidden_states.a)


def holding(text: Tensor) -> Tensor:
    return TwoTensor(text, text)


def test_blocks_that_hand_on_a_tensor_of_another_class() -> None:
    model = ReadingDiT([GatedBlock() for _ in range(3)])
    compiled = compile_toy(model, residual_diff_threshold=1.0)
    inputs = toy_inputs(90.0)
    inputs["encoder_hidden_states"] = holding(inputs["encoder_hidden_states"])
    with pytest.warns(dc.NotCachedWarning, match="work on a TwoTensor, a tensor of a class of its"):
        actual = run(compiled, inputs)
    torch.testing.assert_close(actual.a, run(model, inputs).a)


def test_blocks_that_hand_on_plain_tensors_whatever_the_model_is_given() -> None:
    model = UnwrappingDiT([GatedBlock() for _ in range(3)])
    compiled = compile_toy(model, residual_diff_threshold=1.0)
    first, second = toy_steps([90.0, 80.0])
    text = holding(first["encoder_hidden_states"])
    for inputs in (first, second):
        run(compiled, {**inputs, "encoder_hidden_states": text})
    assert [step.hit for step in dc.summary(compiled).steps] == [False, True]


def test_blocks_that_are_mapped_over() -> None:
    model = gated_dit(3)
    options = {"inner_backend": "eager"}

    @torch.compile(backend="cachedit", options=options)
    def mapped(latents: Tensor, timestep: Tensor) -> Tensor:
        return torch.vmap(lambda each: model(each, timestep))(latents)

    inputs = toy_inputs(90.0)
    latents = torch.stack([inputs["hidden_states"]] * 3)
    with pytest.warns(dc.NotCachedWarning, match=r"the blocks run inside of `torch.vmap`"):
        actual = run_plain(mapped, latents, inputs["timestep"])
    expected = run_plain(model, inputs["hidden_states"], inputs["timestep"])
    torch.testing.assert_close(actual, torch.stack([expected] * 3))


@torch.no_grad()
def run_plain(function: Callable[..., Tensor], *given: Tensor) -> Tensor:
    return function(*given)


def test_tensors_without_values() -> None:
    model = gated_dit(3).to("meta")
    compiled = compile_toy(model)
    inputs = {name: value.to("meta") for name, value in toy_inputs(90.0).items()}
    with pytest.warns(dc.NotCachedWarning, match="on `meta`, which have no values to go by"):
        assert run(compiled, inputs).shape == (2, 6, 8)


class RotatingBlock(nn.Module):
    """Complex numbers, plus what a layer makes of them and a rotation."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.complex(torch.randn(8, 8), torch.randn(8, 8)) / 10)

    def forward(self, h: Tensor, temb: Tensor, rotation: Tensor) -> Tensor:
        return h + (rotation * h) @ self.weight * temb


class ComplexDiT(ToyDiT):
    """Carries complex numbers from block to block."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__([RotatingBlock() for _ in range(3)])

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        rotation = torch.polar(torch.ones_like(h), h.detach())
        h = torch.complex(h, -h)
        for block in self.blocks:
            h = block(h, temb, rotation)
        return h.real + h.imag


class RotaryBlock(RotatingBlock):
    """Goes by complex numbers, and hands on real ones."""

    def forward(self, h: Tensor, temb: Tensor, rotation: Tensor) -> Tensor:
        added = super().forward(torch.complex(h, -h), temb, rotation)
        return h + added.imag


class RotaryDiT(ComplexDiT):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(RotaryBlock() for _ in range(3))

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        rotation = torch.polar(torch.ones_like(h), h.detach())
        for block in self.blocks:
            h = block(h, temb, rotation)
        return h


COMPLEX = r"the blocks hand on complex numbers \(`.*` at test_refusals.py:\d+\), whose imaginary"


def test_blocks_that_hand_on_complex_numbers() -> None:
    """Forecasts of them had no imaginary part."""
    assert_refused(ComplexDiT(), COMPLEX)


def test_blocks_that_are_given_complex_numbers() -> None:
    assert assert_cached(RotaryDiT()).num_blocks == 3


def test_blocks_that_hand_on_complex_numbers_and_are_compiled_one_by_one() -> None:
    model, plain = ComplexDiT(), ComplexDiT()
    for block in model.blocks:
        block.compile(backend="cachedit", options={"inner_backend": "eager"})
    inputs = toy_inputs(90.0)
    with pytest.warns(dc.NotCachedWarning, match=COMPLEX):
        actual = run(model, inputs)
    torch.testing.assert_close(actual, run(plain, inputs))


@pytest.mark.parametrize(
    "config", [(torch._inductor.config, "freezing"), (torch._dynamo.config, "install_free_tensors")]
)
def test_weights_that_dynamo_puts_into_the_graph(config: tuple[Any, str]) -> None:
    torch._dynamo.reset()
    module, name = config
    with module.patch({name: True}):
        assert_refused(gated_dit(), "Dynamo has put the model's weights into the graph")
    torch._dynamo.reset()
    assert_cached(gated_dit(), frozen_weights=True)


@torch.no_grad()
def test_ragged_tensors():
    model = gated_dit()
    parts = [torch.randn(4, 8), torch.randn(6, 8)]
    ragged = torch.nested.nested_tensor(parts, layout=torch.jagged)
    with pytest.warns(dc.NotCachedWarning, match="a tensor of a class of its own"):
        actual = compile_toy(model)(ragged, torch.full((2,), 90.0))
    for part, one in zip(parts, actual.unbind(), strict=True):
        torch.testing.assert_close(one, model(part[None], torch.full((1,), 90.0))[0])
