"""`frozen_weights=True`: what it promises not to need is skipped, and all else is seen as ever."""

import copy
import gc
import logging
import weakref

import pytest
import torch
from torch import nn
from torch._dynamo.eval_frame import _debug_get_cache_entry_list
from torch._dynamo.utils import counters

import dit_cachegraph as dc
from dit_cachegraph.segments.segment_runner import SegmentRunner
from support.logged import logged
from support.toy_dits import DIM, AddingBlock, ToyDiT, adding_dit, gated_dit, toy_inputs
from support.toy_runs import compile_toy, once_more, run, toy_steps

ALWAYS = {"residual_diff_threshold": 1.0, "predictor": "replay"}


def compiled_after(model: nn.Module, num_steps: int, **options: object) -> nn.Module:
    """Compiled, with the first steps of an image behind it; every further one may be reused."""
    torch._dynamo.reset()
    counters.clear()
    compiled = compile_toy(model, **{**ALWAYS, **options})
    for inputs in toy_steps([90.0, 60.0])[:num_steps]:
        run(compiled, inputs)
    return compiled


def last_step(compiled: nn.Module, inputs: dict[str, torch.Tensor]) -> tuple[bool, str]:
    run(compiled, inputs)
    last = dc.summary(compiled).steps[-1]
    return last.hit, last.reason


def guards_of(model: nn.Module) -> list[str]:
    (entry,) = _debug_get_cache_entry_list(type(model).forward.__code__)
    return str(entry.guard_manager).splitlines()


def third_step() -> dict[str, torch.Tensor]:
    return toy_steps([90.0, 60.0, 30.0])[2]


@torch.no_grad()
def write_in_place(model: ToyDiT) -> None:
    model.blocks[1].step.add_(1.0)


def replace_parameter(model: ToyDiT) -> None:
    model.blocks[1].step = nn.Parameter(torch.tensor(7.0))


CHANGES = pytest.mark.parametrize("change", [write_in_place, replace_parameter])


UNGUARDED = {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe}


@pytest.mark.parametrize("options", [{}, UNGUARDED], ids=["guarded", "unguarded"])
@CHANGES
def test_by_default_a_step_after_weights_changed_computes(change, options):
    """Also where Dynamo itself is told to look at no weight."""
    model = adding_dit(1.0, 2.0, 4.0)
    compiled = compiled_after(model, 2, **options)
    change(model)
    assert last_step(compiled, third_step()) == (False, "the weights changed")
    torch.testing.assert_close(run(compiled, once_more(third_step())), run(model, third_step()))


@CHANGES
def test_frozen_weights_are_reused_whatever_became_of_them(change):
    model = adding_dit(1.0, 2.0, 4.0)
    compiled = compiled_after(model, 2, frozen_weights=True)
    before = run(model, third_step())
    change(model)
    hit, _ = last_step(compiled, third_step())
    assert hit
    # The effect of blocks 1 and 2 is that of step 60, when it was 6 sin(90).
    expected = before - (2.0 + 4.0) / 2 * (0.5 - 1.0)
    torch.testing.assert_close(run(compiled, once_more(third_step())), expected)
    assert counters["stats"]["unique_graphs"] == 1


def move(model: ToyDiT) -> None:
    """As `Module.to` does, to where all is twice as large."""
    model._apply(lambda tensor: 2 * tensor)


@pytest.mark.parametrize("change", [write_in_place, move])
def test_what_computes_takes_weights_that_were_written_to_or_moved(change):
    model = adding_dit(1.0, 2.0, 4.0)
    compiled = compiled_after(model, 2, frozen_weights=True)
    before = run(model, third_step())
    change(model)
    dc.configure(compiled, enabled=False)
    after = run(compiled, third_step())
    assert not torch.equal(after, before)
    torch.testing.assert_close(after, run(model, third_step()))


def test_what_computes_takes_no_weight_that_replaced_another():
    model = adding_dit(1.0, 2.0, 4.0)
    compiled = compiled_after(model, 2, frozen_weights=True)
    before = run(model, third_step())
    replace_parameter(model)
    dc.configure(compiled, enabled=False)
    torch.testing.assert_close(run(compiled, third_step()), before)


def test_of_the_model_nothing_is_guarded_but_which_it_is():
    model = adding_dit(1.0, 2.0, 4.0)
    compiled_after(model, 1)
    default = guards_of(model)
    assert len([line for line in default if "L['self']" in line]) > 50
    compiled_after(model, 1, frozen_weights=True)
    frozen = guards_of(model)
    found, check = [line for line in frozen if "L['self']" in line]
    assert "source=L['self'], " in found and "ID_MATCH: ___check_obj_id(L['self'], " in check
    assert _num_tensors(frozen) == 2  # latents and timestep; the text goes nowhere
    assert _num_tensors(default) == 2 + len(list(model.parameters()))


def _num_tensors(guards: list[str]) -> int:
    return sum("TENSOR_MATCH: " in line for line in guards)


def test_no_weight_is_looked_at(monkeypatch):
    """Counted: how often a step reads the counter of writes of a weight."""
    model, read = adding_dit(1.0, 2.0, 4.0), []
    monkeypatch.setattr(
        "dit_cachegraph.runtime.weights._version", lambda w: (read.append(w), w._version)[1]
    )
    compiled_after(model, 1)
    assert len(read) == 5, "of three blocks, the embedding and the projection before them"
    read.clear()
    compiled_after(model, 1, frozen_weights=True)
    assert read == []


class ShiftedDiT(ToyDiT):
    """Adds a buffer, which `Module.to` replaces, and a parameter that the caller gives."""

    def __init__(self) -> None:
        super().__init__([AddingBlock(step) for step in (1.0, 2.0, 4.0)])
        self.register_buffer("shift", torch.zeros(DIM))

    def trunk(self, h, temb, e):
        return super().trunk(h + self.shift + e.sum(), temb, None)


@pytest.fixture
def handed_over(monkeypatch):
    """What each call of the graph is given."""
    values_of, given = SegmentRunner.values_of, []

    def spy(self, args):
        given.append(args)
        return values_of(self, args)

    monkeypatch.setattr(SegmentRunner, "values_of", spy)
    return given


@pytest.mark.parametrize("is_frozen", [False, True])
def test_no_parameter_of_the_model_is_handed_over(handed_over, is_frozen):
    model = ShiftedDiT()
    own = [id(parameter) for parameter in model.parameters()]
    compiled = compiled_after(model, 0, frozen_weights=is_frozen, residual_diff_threshold=0.0)
    for text in (1.0, 2.0):
        inputs = {**third_step(), "encoder_hidden_states": nn.Parameter(torch.tensor([text]))}
        model.shift = torch.full((DIM,), text)
        torch.testing.assert_close(run(compiled, inputs), run(model, inputs))
        args = handed_over[-1]
        assert sum(id(arg) in own for arg in args) == (0 if is_frozen else len(own))
        assert any(arg is model.shift for arg in args)
        assert any(arg is inputs["encoder_hidden_states"] for arg in args)
    assert counters["stats"]["unique_graphs"] == 1


class EarlyTextDiT(ShiftedDiT):
    """Reads the text before its own weight, so that Dynamo names both after the text, if they are
    one."""

    def __init__(self) -> None:
        super().__init__()
        self.no_text = nn.Parameter(torch.ones(1))

    def trunk(self, h, temb, e):
        return super().trunk(h, temb, e) + self.no_text


class LateTextDiT(EarlyTextDiT):
    def trunk(self, h, temb, e):
        return super().trunk(h + self.no_text, temb, e)


@pytest.mark.parametrize("made_of", [EarlyTextDiT, LateTextDiT])
def test_a_parameter_of_the_model_as_an_argument_is_itself_alone(made_of):
    """As of a model that has a text of its own, for none."""
    model = made_of()
    compiled = compiled_after(model, 0, frozen_weights=True, residual_diff_threshold=0.0)
    given = {**third_step(), "encoder_hidden_states": nn.Parameter(torch.tensor([5.0]))}
    for text in (model.no_text, given["encoder_hidden_states"], model.no_text):
        inputs = {**given, "encoder_hidden_states": text}
        torch.testing.assert_close(run(compiled, inputs), run(model, inputs))
    assert counters["stats"]["unique_graphs"] == 2


@pytest.mark.parametrize("is_frozen", [False, True])
def test_what_dynamo_runs_at_a_call_does_not_grow_with_depth(is_frozen):
    lengths = []
    for steps in ((1.0, 2.0, 4.0), (1.0, 2.0, 4.0, 8.0, 16.0)):
        model = adding_dit(*steps)
        compiled_after(model, 1, frozen_weights=is_frozen)
        (entry,) = _debug_get_cache_entry_list(type(model).forward.__code__)
        lengths.append(len(entry.code.co_code))
    assert (lengths[0] == lengths[1]) is is_frozen


def test_parameters_that_are_handed_over_all_the_same_are_taken(handed_over):
    """As by a wrapper that compiles a copy of the graph."""

    def copying(gm, example_inputs):
        compile_copy = torch._dynamo.lookup_backend("cachedit")
        return compile_copy(copy.deepcopy(gm), example_inputs, options=options)

    options = {"inner_backend": "eager", "frozen_weights": True}
    model = adding_dit(1.0, 2.0, 4.0)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=copying)
    torch.testing.assert_close(run(compiled, third_step()), run(model, third_step()))
    assert len(handed_over[-1]) == 2 + len(list(model.parameters()))


def test_a_model_that_dies_takes_its_weights_with_it():
    """At once, also where nobody collects garbage."""
    model = adding_dit(1.0, 2.0, 4.0)
    compiled = compiled_after(model, 0, frozen_weights=True)
    gc.collect()
    gc.disable()
    try:
        run(compiled, third_step())
        weight, own = weakref.ref(model.blocks[1].step), weakref.ref(model)
        del model, compiled
        assert own() is None and weight() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("rule", ["replay", "taylorseer", "damped_line"])
def test_under_inductor_it_draws_as_without(rule):
    model = gated_dit()
    drawn = []
    for is_frozen in (False, True):
        settings = {"frozen_weights": is_frozen, "predictor": rule, "max_warmup_steps": 2}
        compiled = compiled_after(model, 0, inner_backend="inductor", **settings)
        drawn.append([run(compiled, inputs) for inputs in toy_steps([90.0, 80.0, 60.0, 30.0])])
        assert [step.hit for step in dc.summary(compiled).steps[-4:]] == [False, False, True, True]
    torch.testing.assert_close(drawn[0], drawn[1])


def test_an_attribute_of_a_module_is_not_seen():
    class ScalingDiT(ToyDiT):
        scale = 1

        def trunk(self, h, temb, e):
            return super().trunk(h * self.scale, temb, e)

    for is_frozen, num_graphs in ((False, 2), (True, 1)):
        model = ScalingDiT([AddingBlock(step) for step in (1.0, 2.0, 4.0)])
        model.scale = 2
        compiled = compiled_after(model, 1, frozen_weights=is_frozen)
        model.scale = 3
        run(compiled, toy_steps([90.0, 60.0])[1])
        assert counters["stats"]["unique_graphs"] == num_graphs


@pytest.mark.parametrize("is_frozen", [False, True])
def test_inputs_and_grad_mode_are_seen(is_frozen):
    model = adding_dit(1.0, 2.0, 4.0)
    settings = {"frozen_weights": is_frozen, "residual_diff_threshold": 0.0}
    compiled = compiled_after(model, 2, **settings)
    whole = {**third_step(), "timestep": third_step()["timestep"].long()}
    torch.testing.assert_close(run(compiled, whole), run(model, whole))
    assert counters["stats"]["unique_graphs"] == 2
    larger = toy_inputs(30.0, batch=3)
    torch.testing.assert_close(run(compiled, larger), run(model, larger))
    assert counters["stats"]["unique_graphs"] == 3
    with pytest.warns(dc.NotCachedWarning, match="gradients on"):
        compiled(**third_step())
    assert counters["stats"]["unique_graphs"] == 4


def test_settings_act_as_ever():
    compiled = compiled_after(adding_dit(1.0, 2.0, 4.0), 2, frozen_weights=True)
    dc.configure(compiled, residual_diff_threshold=0.0)
    assert last_step(compiled, third_step()) == (False, "threshold 0")
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("steps", [(3.0, 5.0, 9.0), (1.0, 2.0, 4.0, 8.0)])
def test_another_model_of_the_class_is_compiled_for_itself(steps):
    compiled = compiled_after(adding_dit(1.0, 2.0, 4.0), 2, frozen_weights=True)
    other = adding_dit(*steps)
    own = compile_toy(other, **ALWAYS, frozen_weights=True)
    torch.testing.assert_close(run(own, third_step()), run(other, third_step()))
    assert counters["stats"]["unique_graphs"] == 2
    assert last_step(compiled, third_step())[0]


def test_a_model_that_dynamo_cannot_tell_from_another_is_handed_over():
    """It drops the guard on which it is, where it saves what it compiles."""
    model, other = adding_dit(1.0, 2.0, 4.0), adding_dit(3.0, 5.0, 9.0)
    with torch._dynamo.config.patch(caching_precompile=True), logged(logging.WARNING) as lines:
        own = compiled_after(model, 2, frozen_weights=True)
        others = compile_toy(other, **ALWAYS, frozen_weights=True)
        torch.testing.assert_close(run(others, third_step()), run(other, third_step()))
        assert last_step(own, third_step())[0]
    assert any("it can't tell one model from another" in line for line in lines)


def test_a_function_that_calls_the_model():
    model = adding_dit(1.0, 2.0, 4.0)
    torch._dynamo.reset()
    counters.clear()

    def denoise(hidden_states, timestep, encoder_hidden_states):
        return model(hidden_states, timestep, encoder_hidden_states)

    options = {"inner_backend": "eager", "Fn_compute_blocks": 1, "max_warmup_steps": 0, **ALWAYS}
    options["frozen_weights"] = True
    compiled = torch.compile(denoise, backend="cachedit", options=options)
    first, second, third = toy_steps([90.0, 60.0, 30.0])
    for inputs in (first, second):
        run(compiled, inputs)
    write_in_place(model)
    run(compiled, third)
    assert dc.summary(model).steps[-1].hit
    assert counters["stats"]["unique_graphs"] == 1


def test_enable_cache_takes_it():
    model = adding_dit(1.0, 2.0, 4.0)
    torch._dynamo.reset()
    settings = {"Fn_compute_blocks": 1, "max_warmup_steps": 0, "residual_diff_threshold": 1.0}
    for is_frozen in (True, False):
        dc.enable_cache(model, frozen_weights=is_frozen, **settings)
        dc.reset(model)
        for inputs in toy_steps([90.0, 60.0]):
            run(model, inputs)
        write_in_place(model)
        run(model, third_step())
        assert dc.summary(model).steps[-1].hit is is_frozen
    dc.disable_cache(model)


def test_it_is_a_bool():
    with pytest.raises(dc.InvalidConfig, match="frozen_weights must be True or False, got 1"):
        dc.enable_cache(adding_dit(1.0, 2.0), frozen_weights=1)
    with pytest.raises(Exception, match="frozen_weights must be True or False, got 1"):
        compiled_after(adding_dit(1.0, 2.0), 1, frozen_weights=1)
