"""`enable_cache` on a model that breaks among its blocks: where that is for a size that depends on
data, its calls are traced as one graph from the next one on; where it isn't, all stays as it was.
"""

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import dit_cachegraph as dc
from dit_cachegraph.compat import cached_forward
from migration.stand_ins import OwnBlock, OwnTransformer, own_loop
from zoo.checks import levels_of
from zoo.entries import ENTRIES

ALWAYS = {"residual_diff_threshold": 1.0, "max_warmup_steps": 2, "Fn_compute_blocks": 1}
NUM_STEPS = 5
WARM_THEN_HITS = [False, False, True, True, True]
TRIED_AGAIN = "; the next call is traced as one graph"


class PickingBlock(OwnBlock):
    """Adds the mean of the tokens that a mask picks, as Mochi's text is: Dynamo breaks there."""

    def forward(self, hidden_states: Tensor, temb: Tensor) -> Tensor:
        picked = hidden_states[:, self.between(hidden_states[0, :, 0] > -9).nonzero()[:, 0]]
        return super().forward(hidden_states, temb + picked.mean(1, keepdim=True))

    def between(self, is_picked: Tensor) -> Tensor:
        return is_picked


class Picking(OwnTransformer):
    def __init__(self, make: type[OwnBlock] = PickingBlock) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(make() for _ in range(6)).eval().requires_grad_(False)


class PickingBetween(OwnTransformer):
    """Breaks between its blocks, which are then watched one by one before they are refused."""

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        temb = self.time(torch.stack([timestep, timestep], dim=-1))[:, None]
        for block in self.blocks:
            picked = hidden_states[:, (hidden_states[0, :, 0] > -9).nonzero()[:, 0]]
            hidden_states = block(hidden_states, temb + picked.mean(1, keepdim=True))
        return self.out(hidden_states)


class BreakingBlock(PickingBlock):
    def between(self, is_picked: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return is_picked


def told(caught: list[warnings.WarningMessage]) -> list[str]:
    return [str(w.message) for w in caught if issubclass(w.category, dc.NotCachedWarning)]


def hits_of(model: nn.Module) -> list[bool]:
    return [step.hit for step in dc.summary(model).steps]


@pytest.fixture(autouse=True)
def counted_anew() -> None:
    counters.clear()


def test_the_second_call_is_cached_and_nobody_is_warned() -> None:
    model = Picking()
    exact = own_loop(model)
    dc.enable_cache(model, **{**ALWAYS, "residual_diff_threshold": 0.0})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        own_loop(model, 1)
        assert str(dc.summary(model).statuses[0].sentence).endswith(TRIED_AGAIN)
        torch.testing.assert_close(own_loop(model), exact)
    assert (told(caught), dc.summary(model).is_cached) == ([], True)
    dc.enable_cache(model, **ALWAYS)
    own_loop(model, NUM_STEPS, seed=1)
    assert hits_of(model)[-NUM_STEPS:] == WARM_THEN_HITS
    assert dc.summary(model).graphs[-1].region == (1, 6)


def test_as_with_the_flag_of_dynamo() -> None:
    model, twin = dc.enable_cache(Picking(), **ALWAYS), dc.enable_cache(Picking(), **ALWAYS)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        expected = own_loop(twin, NUM_STEPS)
    torch._dynamo.reset()
    own_loop(model, 1)
    assert torch.equal(own_loop(model, NUM_STEPS), expected)
    assert hits_of(model) == hits_of(twin) == WARM_THEN_HITS


def test_blocks_that_are_watched_first() -> None:
    model = dc.enable_cache(PickingBetween(), **ALWAYS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        own_loop(model, 5)
        assert str(dc.summary(model).statuses[0].sentence).endswith(TRIED_AGAIN)
        own_loop(model, NUM_STEPS, seed=1)
    assert (told(caught), hits_of(model)[-NUM_STEPS:]) == ([], WARM_THEN_HITS)


@pytest.mark.e2e
@pytest.mark.parametrize(("name", "max_before"), [("mochi", 1), ("nucleus", 5)])
def test_models_of_diffusers(name: str, max_before: int) -> None:
    entry = next(entry for entry in ENTRIES if entry.name == name)
    model = dc.enable_cache(entry.build(), **ALWAYS)
    with torch.no_grad():
        for inputs in entry.steps(model, levels_of(entry, max_before + NUM_STEPS)):
            model(**inputs)
    assert hits_of(model)[:NUM_STEPS] == WARM_THEN_HITS
    dc.check(model)


def test_under_inductor() -> None:
    model = Picking()
    exact = own_loop(model)
    dc.enable_cache(model, **{**ALWAYS, "residual_diff_threshold": 0.0}, compile=True)
    own_loop(model, 1)
    torch.testing.assert_close(own_loop(model), exact)
    dc.check(model)
    assert counters["inductor"]


def test_a_break_that_stays_is_told_once_and_traced_no_more() -> None:
    model = Picking(BreakingBlock)
    exact = own_loop(model, NUM_STEPS)
    dc.enable_cache(model, **ALWAYS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        own_loop(model, 2)
        num_graphs = counters["stats"]["unique_graphs"]
        assert torch.equal(own_loop(model, NUM_STEPS), exact)
    (sentence,) = told(caught)
    assert "graph_break()" in sentence
    assert not dc.summary(model).statuses[0].sentence.endswith(TRIED_AGAIN)
    assert counters["stats"]["unique_graphs"] == num_graphs
    assert model.forward._compiled.keys() == {
        (False, False, is_one_graph, model.forward.recompile_limit())
        for is_one_graph in (False, True)
    }


def test_an_error_of_the_caller_is_the_callers() -> None:
    model = Picking()
    dc.enable_cache(model, **ALWAYS)
    own_loop(model, 2)
    for wrong in (torch.ones(2, 8, 15), torch.ones(2, 8, 3)):
        with pytest.raises(RuntimeError, match="shape|size"), torch.no_grad():
            model(wrong, torch.ones(2))
    own_loop(model, NUM_STEPS)
    dc.check(model)


def test_a_copy_and_what_is_turned_off_and_on_begin_anew() -> None:
    model = Picking()
    dc.enable_cache(model, **ALWAYS)
    own_loop(model, 2)
    twin = copy.deepcopy(model)
    dc.disable_cache(model)
    dc.enable_cache(model, **ALWAYS)
    for begun in (twin, model):
        own_loop(begun, 1)
        assert not dc.summary(begun).is_cached
        own_loop(begun, 1)
        dc.check(begun)


class PickingKinds(Picking):
    def forward(self, hidden_states: Tensor, timestep: Tensor, ids: list[int]) -> Tensor:
        return super().forward(hidden_states + len(ids), timestep)


@pytest.mark.skipif(not cached_forward._TAKES_A_LIMIT, reason="torch.compile takes none")
def test_beyond_dynamos_limit_it_runs_and_what_was_compiled_stays_cached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cached_forward, "NUM_KINDS_TRACED", 2)
    model = dc.enable_cache(PickingKinds(), **ALWAYS)
    x, t = torch.randn(2, 8, 16), torch.ones(2)
    with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=1):
        cached = []
        for num_ids in (0, 0, 1, 2, 1):
            given = [0] * num_ids
            exact = PickingKinds.forward(model, x, t, given)
            torch.testing.assert_close(model(x, t, ids=given), exact)
            cached.append(dc.summary(model).is_cached)
    assert cached == [False, True, True, False, True]
