"""Whether the last calls went through the cache: `is_cached`, `check`, the first line of `summary`.

Each cause that Dynamo has to run a model without asking us, beside what helps against it.
"""

import copy
import json
import multiprocessing
import pickle
import threading
import warnings
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn

import dit_cachegraph as dc
from support.toy_dits import GatedBlock, ToyDiT, adding_dit, gated_dit, toy_inputs
from support.toy_runs import compile_toy, run, toy_steps

IN_PLACE = {"inner_backend": "eager", "Fn_compute_blocks": 1, "max_warmup_steps": 0}


def compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="cachedit", options={**IN_PLACE, "residual_diff_threshold": 1.0})
    return model


def draw(model: nn.Module, tokens: int = 6, timesteps: Sequence[float] = (90.0, 60.0, 30.0)) -> int:
    """An image of so many tokens; the number of its steps that `summary` has seen."""
    before = len(dc.summary(model).steps)
    for inputs in toy_steps(timesteps):
        latents = inputs["hidden_states"].repeat(1, 4, 1)[:, :tokens]
        run(model, {**inputs, "hidden_states": latents})
    return len(dc.summary(model).steps) - before


def first_line(target: object) -> str:
    return str(dc.summary(target)).splitlines()[0]


def why_not(target: object) -> str:
    """What `check` raises, which is what the report begins with."""
    assert not dc.summary(target).is_cached
    with pytest.raises(dc.NotCached) as raised:
        dc.check(target)
    assert first_line(target) == str(raised.value).splitlines()[0]
    return str(raised.value)


def assert_cached_now(target: object) -> None:
    dc.check(target)
    assert dc.summary(target).is_cached
    assert first_line(target) == "cached"


@pytest.fixture
def static_shapes() -> Iterator[None]:
    with torch._dynamo.config.patch(automatic_dynamic_shapes=False):
        yield


class CountingDiT(ToyDiT):
    """Counts its calls on itself."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__(blocks)
        self.num_calls = 0

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        self.num_calls += 1
        return super().trunk(h, temb, e)


def gated_blocks() -> list[nn.Module]:
    torch.manual_seed(0)
    return [GatedBlock() for _ in range(3)]


class TestLimit:
    def test_a_counter_on_the_module(self):
        model = compiled_in_place(CountingDiT(gated_blocks()))
        timesteps = [90.0 - 4 * i for i in range(12)]
        assert draw(model, timesteps=timesteps) == 8
        said = why_not(model)
        assert said.startswith("not cached: the last 4 calls ran eagerly; Dynamo has compiled `")
        assert "8 times (the guard that failed last: `self.num_calls == 7`)" in said
        assert "set `torch._dynamo.config.allow_unspec_int_on_nn_module = True`" in said

    def test_the_setting_that_it_names_helps(self):
        model = compiled_in_place(CountingDiT(gated_blocks()))
        with torch._dynamo.config.patch(allow_unspec_int_on_nn_module=True):
            assert draw(model, timesteps=[90.0 - 4 * i for i in range(12)]) == 12
            assert_cached_now(model)

    def test_sizes(self, static_shapes):
        model = compiled_in_place(gated_dit(3))
        for tokens in range(2, 10):
            assert draw(model, tokens) == 3
        assert_cached_now(model)
        assert draw(model, 10) == 0
        said = why_not(model)
        assert "`tensor 'hidden_states' size mismatch at index 1. expected 9, actual 10`" in said
        assert "raise `torch._dynamo.config.recompile_limit`, and call `torch._dynamo.res" in said
        # What was compiled goes on.
        assert draw(model, 2) == 3
        assert_cached_now(model)
        torch._dynamo.reset()
        assert draw(model, 10) == 3
        assert_cached_now(model)

    def test_another_model_of_the_same_code(self, static_shapes):
        """The first has used all up; its own last call fits what was compiled."""
        model, other = compiled_in_place(gated_dit(3)), compiled_in_place(gated_dit(5))
        for tokens in range(2, 10):
            draw(model, tokens)
        assert draw(other) == 0
        assert "no call has come here; Dynamo has compiled `" in why_not(other)
        assert_cached_now(model)

    @pytest.mark.slow
    @pytest.mark.parametrize("is_warm", [False, True])
    def test_first_calls_of_eight_threads(self, is_warm):
        """Each compiles the same graph, unless one has ended before; what comes after is said."""
        model = compiled_in_place(gated_dit(3))
        if is_warm:
            draw(model)
        start = threading.Barrier(8)

        def first_call() -> None:
            start.wait()
            draw(model)

        threads = [threading.Thread(target=first_call) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert_cached_now(model)
        if is_warm:
            assert len(dc.summary(model).graphs) == 1
        num_seen = draw(model, 10)
        assert dc.summary(model).is_cached == (num_seen == 3)
        if not num_seen:
            said = why_not(model)
            assert "7 of them anew since threads began at once" in said
            assert "let one call end before other threads make theirs, or raise `torch._dy" in said


class TestStances:
    @pytest.mark.parametrize("stance", ["force_eager", "eager_on_recompile"])
    def test_a_call_under_one(self, stance):
        model = compiled_in_place(gated_dit(3))
        assert draw(model) == 3
        with torch.compiler.set_stance(stance):
            assert draw(model, 10) == 0
            assert f'the stance "{stance}" of `torch.compiler.set_stance`' in why_not(model)
        assert f'the stance "{stance}" of `torch.compiler.set_stance` was in for' in why_not(model)
        assert draw(model, 10) == 3
        assert_cached_now(model)

    def test_what_is_compiled_goes_on_under_eager_on_recompile(self):
        model = compiled_in_place(gated_dit(3))
        draw(model)
        with torch.compiler.set_stance("eager_on_recompile"):
            assert draw(model) == 3
            assert_cached_now(model)

    @pytest.mark.parametrize("stance", ["force_eager", "eager_on_recompile"])
    def test_one_before_the_first_call(self, stance):
        model = compiled_in_place(gated_dit(3))
        with torch.compiler.set_stance(stance):
            draw(model)
            assert f'the stance "{stance}" of `torch.compiler.set_stance` is in' in why_not(model)
        assert why_not(model).startswith("not called yet")
        assert draw(model) == 3
        assert_cached_now(model)


class TestDisabled:
    def test_a_call(self):
        model = compiled_in_place(gated_dit(3))
        draw(model)
        with torch._dynamo.config.patch(disable=True):
            assert draw(model, 10) == 0
        assert "`torch._dynamo.config.disable` was in force" in why_not(model)
        # Dynamo leaves the code out for good.
        assert draw(model, 10) == 0
        assert "`torch._dynamo.config.disable` was set at an earlier call" in why_not(model)
        torch._dynamo.reset()
        assert draw(model, 10) == 3
        assert_cached_now(model)

    def test_the_first_call(self):
        model = compiled_in_place(gated_dit(3))
        with torch._dynamo.config.patch(disable=True):
            draw(model)
            assert "`torch._dynamo.config.disable` is in force" in why_not(model)
        assert draw(model) == 0
        assert "Dynamo has looked at its code and leaves it out since" in why_not(model)
        torch._dynamo.reset()
        assert draw(model) == 3
        assert_cached_now(model)


def said_by_a_worker(model: nn.Module, answers: "multiprocessing.Queue[tuple[int, str]]") -> None:
    num_seen = draw(model)
    answers.put((num_seen, why_not(model)))


LOST = (
    "this ToyDiT has no compiled call itself (a copy by `deepcopy` or `pickle` loses it, and "
    "`disable_cache` takes it away)"
)


class TestCopies:
    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
    def test_a_copy_is_not_compiled(self, copied):
        model = compiled_in_place(gated_dit(3))
        draw(model)
        other = copied(model)
        assert draw(other) == 0
        assert LOST in why_not(other)
        assert_cached_now(model)
        compiled_in_place(other)
        assert draw(other) == 3
        assert_cached_now(other)

    @pytest.mark.slow
    def test_a_worker(self):
        model = compiled_in_place(gated_dit(3))
        context = multiprocessing.get_context("spawn")
        answers = context.Queue()
        worker = context.Process(target=said_by_a_worker, args=(model, answers))
        worker.start()
        num_seen, said = answers.get(timeout=300)
        worker.join()
        assert num_seen == 0
        assert LOST in said


class TestStanding:
    def test_before_the_first_call(self):
        model = compiled_in_place(gated_dit(3))
        assert why_not(model).startswith("not called yet: nothing is compiled before the first")

    def test_of_a_refused_model(self):
        compiled = compile_toy(adding_dit(1))
        with pytest.warns(dc.NotCachedWarning) as warned:
            run(compiled, toy_inputs(90.0))
        (warning,) = warned
        assert why_not(compiled) == str(warning.message)

    def test_of_the_last_call_and_not_of_the_best(self):
        compiled = compile_toy(gated_dit(3))
        run(compiled, toy_inputs(90.0))
        assert_cached_now(compiled)
        with pytest.warns(dc.NotCachedWarning, match="compiled with gradients on"):
            compiled(**toy_inputs(60.0))
        assert "compiled with gradients on" in why_not(compiled)
        run(compiled, toy_inputs(30.0))
        assert_cached_now(compiled)

    def test_turned_off(self):
        compiled = compile_toy(gated_dit(3))
        dc.configure(compiled, enabled=False)
        run(compiled, toy_inputs(90.0))
        assert why_not(compiled) == "turned off: `enabled=False` runs every block"
        dc.configure(compiled, enabled=True)
        assert_cached_now(compiled)

    def test_after_disable_cache(self):
        model = dc.enable_cache(gated_dit(3), Fn_compute_blocks=1)
        assert draw(model) == 3
        assert_cached_now(model)
        dc.disable_cache(model)
        assert draw(model) == 0
        assert LOST in why_not(model)

    def test_graphs_beside_the_blocks_are_not_blamed(self):
        compiled = compile_toy(BreakBeforeTrunkDiT(gated_blocks()))
        draw(compiled)
        said = str(dc.summary(compiled))
        assert said.startswith("cached\nblocks x 3: 3 blocks\n")
        assert "more graphs of its calls without blocks" in said
        assert "not cached" not in said

    def test_a_graph_without_weights_is_of_no_other_model(self):
        compiled = compile_toy(gated_dit())
        dc.configure(compiled, enabled=True)
        run(compiled, toy_inputs(90.0))
        halved = torch.compile(lambda x: x / 2, backend="cachedit", options=IN_PLACE)
        with torch.no_grad(), pytest.warns(dc.NotCachedWarning) as warned:
            halved(torch.ones(3))
            halved(torch.ones(3))
        assert len(warned) == 1
        dc.check(compiled)
        assert dc.summary(compiled).refusals == ()

    def test_a_call_that_fails_says_nothing(self):
        compiled = compile_toy(gated_dit(3))
        run(compiled, toy_inputs(90.0))
        with pytest.raises(TypeError):
            compiled(toy_inputs(90.0)["hidden_states"])
        assert_cached_now(compiled)

    def test_as_json(self):
        compiled = compile_toy(gated_dit(3))
        run(compiled, toy_inputs(90.0))
        told = json.loads(json.dumps(dc.summary(compiled).to_dict()))
        assert told["is_cached"] is True
        assert told["statuses"] == [{"model": "ToyDiT", "standing": "cached", "sentence": "cached"}]


class TestWarnings:
    def test_one_a_model(self):
        """Two graphs a call, three calls, another size: one warning. Another model has its own."""

        def warned_of(compiled: nn.Module) -> int:
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                for _ in range(3):
                    draw(compiled)
                draw(compiled, 10)
            return sum(w.category is dc.NotCachedWarning for w in warned)

        model, other = BrokenDiT(gated_blocks()), BrokenDiT(gated_blocks())
        assert warned_of(compile_toy(model)) == 1
        assert len(dc.summary(model).refusals) > 1
        assert warned_of(compile_toy(other)) == 1

    def test_none_where_the_trunk_is_in_another_graph_of_the_call(self):
        compiled = compile_toy(BreakBeforeTrunkDiT(gated_blocks()))
        with warnings.catch_warnings():
            warnings.simplefilter("error", dc.NotCachedWarning)
            draw(compiled)
        assert dc.summary(compiled).refusals
        assert_cached_now(compiled)

    def test_equal_refusals_are_told_once(self):
        model = gated_dit(3)
        for block in model.blocks:
            block.forward = torch.compile(block.forward, backend="cachedit", options=IN_PLACE)
        with pytest.warns(dc.NotCachedWarning) as warned:
            draw(model)
            draw(model, 10)
        assert len(warned) == 1
        report = dc.summary(model)
        (graph,) = report.graphs
        assert graph.num_graphs > 1
        assert f"({graph.num_graphs} graphs)" in str(report)

    def test_refusals_of_graphs_that_dynamo_has_dropped_go(self):
        compiled = compile_toy(adding_dit(1))
        with pytest.warns(dc.NotCachedWarning):
            run(compiled, toy_inputs(90.0))
        assert len(dc.summary(compiled).refusals) == 1
        torch._dynamo.reset()
        assert dc.summary(compiled).refusals == ()


class BrokenDiT(ToyDiT):
    """Breaks between two blocks."""

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        for i, block in enumerate(self.blocks):
            if i == 1 and h.sum() > 1e9:
                h = h / 2
            h = block(h, temb)
        return h


class BreakBeforeTrunkDiT(ToyDiT):
    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        torch._dynamo.graph_break()
        return super().trunk(h, temb, e)
