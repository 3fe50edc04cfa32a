"""Settings that are refused, each where it was given and with the name, the value and what is
allowed; and their neighbours, which are taken."""

import logging

import pytest
import torch

import dit_cachegraph as dc
from support.logged import logged
from support.toy_dits import adding_dit, gated_dit, toy_inputs
from support.toy_runs import assert_cached, compile_toy, run, toy_steps

BAD_VALUES = [
    ({"enabled": 1}, "enabled must be True or False, got 1"),
    ({"Fn_compute_blocks": 0}, "Fn_compute_blocks must be an integer of at least 1, got 0"),
    ({"Fn_compute_blocks": 1.5}, "Fn_compute_blocks must be an integer.*got 1.5"),
    ({"Bn_compute_blocks": -1}, "Bn_compute_blocks must be an integer of at least 0, got -1"),
    ({"Bn_compute_blocks": True}, "Bn_compute_blocks must be an integer.*got True"),
    ({"residual_diff_threshold": -0.1}, "residual_diff_threshold must be a finite number.*-0.1"),
    ({"residual_diff_threshold": "0.1"}, "residual_diff_threshold must be a finite number.*'0.1'"),
    ({"residual_diff_threshold": float("nan")}, "must be a finite number.*got nan"),
    ({"max_accumulated_residual_diff_threshold": float("inf")}, "finite number.*got inf"),
    ({"max_warmup_steps": -1}, "max_warmup_steps must be an integer of at least 0"),
    ({"warmup_interval": 0}, "warmup_interval must be an integer of at least 1, got 0"),
    ({"max_cached_steps": -2}, "max_cached_steps must be an integer of at least -1, got -2"),
    ({"max_continuous_cached_steps": None}, "max_continuous_cached_steps must be.*got None"),
    ({"steps_computation_mask": []}, "steps_computation_mask must be a sequence of 0 and 1"),
    ({"steps_computation_mask": [0, 2]}, r"sequence of 0 and 1, one a step, got [\[(]0, 2"),
    ({"steps_computation_mask": "01"}, "sequence of 0 and 1, one a step, got '01'"),
    ({"steps_computation_policy": "dynamc"}, "one of 'dynamic', 'static', got 'dynamc'"),
    ({"num_inference_steps": 0}, "num_inference_steps must be an integer of at least 1, got 0"),
    ({"batch_rule": "min"}, "batch_rule must be one of 'max', 'mean', 'per_sample', got 'min'"),
    ({"residual_treshold": 0.1}, "unknown option residual_treshold: did you mean residual_diff_t"),
    ({"Fn": 1, "zzzz": 1}, "unknown option Fn: "),
    (
        {"zzzz": 1},
        "unknown option zzzz: known: Bn_compute_blocks, Bn_compute_blocks_ids, Fn_compute_blocks",
    ),
]
GOOD_VALUES = {
    "enabled": True,
    "Bn_compute_blocks": 0,
    "residual_diff_threshold": 0,
    "max_accumulated_residual_diff_threshold": None,
    "max_warmup_steps": 0,
    "warmup_interval": 1,
    "max_cached_steps": -1,
    "max_continuous_cached_steps": -1,
    "steps_computation_mask": [1, 0],
    "steps_computation_policy": "static",
    "num_inference_steps": 1,
    "batch_rule": "mean",
}
each_bad_value = pytest.mark.parametrize(
    ("settings", "sentence"), BAD_VALUES, ids=[str(settings) for settings, _ in BAD_VALUES]
)


@each_bad_value
def test_bad_setting_of_configure_changes_nothing(
    settings: dict[str, object], sentence: str
) -> None:
    compiled = compile_toy(adding_dit(1, 2, 3))
    inputs = toy_inputs(90.0)
    run(compiled, inputs)
    before = dc.summary(compiled).graphs
    with pytest.raises(dc.InvalidConfig, match=sentence):
        dc.configure(compiled, **{"Bn_compute_blocks": 1, **settings})
    assert dc.summary(compiled).graphs == before
    run(compiled, inputs)


@each_bad_value
def test_bad_setting_of_request(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(dc.InvalidConfig, match=sentence):
        dc.request("one", **settings)


@pytest.mark.parametrize(("settings", "sentence"), BAD_VALUES[3::7])
def test_bad_setting_of_options_is_raised_by_the_first_call(
    settings: dict[str, object], sentence: str
) -> None:
    compiled = compile_toy(adding_dit(1, 2, 3), **settings)
    # Dynamo wraps what a backend raises.
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match=sentence) as raised:
        run(compiled, toy_inputs(90.0))
    assert isinstance(raised.value.inner_exception, dc.InvalidConfig)


@pytest.mark.parametrize("name", GOOD_VALUES)
def test_value_at_the_border_is_taken(name: str) -> None:
    model = adding_dit(1, 2)
    dc.configure(model, **{name: GOOD_VALUES[name]})
    with dc.request("one", **{name: GOOD_VALUES[name]}):
        run(compile_toy(model), toy_inputs(90.0))
    assert dc.summary(model).num_computed == 1


@pytest.mark.parametrize("name", ["inner_backend", "mode", "inductor"])
def test_compile_time_option_is_not_for_configure(name: str) -> None:
    sentence = f"{name} is decided when the model is compiled: give it to torch.compile"
    with pytest.raises(dc.InvalidConfig, match=sentence):
        dc.configure(adding_dit(1, 2), **{name: "eager"})


@pytest.mark.parametrize("name", ["nope", "cachedit"])
def test_unknown_inner_backend(name: str) -> None:
    compiled = compile_toy(adding_dit(1, 2), inner_backend=name)
    sentence = f"inner_backend must be a registered backend.*'inductor'.*got '{name}'"
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match=sentence):
        run(compiled, toy_inputs(90.0))


@pytest.mark.parametrize("name", ["eager", "aot_eager"])
def test_known_inner_backend(name: str) -> None:
    assert assert_cached(gated_dit(2), inner_backend=name).num_blocks == 2


@pytest.mark.parametrize("settings", [{"mode": "nope"}, {"options": {"mode": "nope"}}])
def test_unknown_mode(settings: dict[str, object]) -> None:
    compiled = torch.compile(adding_dit(1, 2), backend="cachedit", **settings)
    sentence = "mode must be one of 'default'.*got 'nope'"
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match=sentence):
        run(compiled, toy_inputs(90.0))


@pytest.mark.parametrize(
    ("inductor", "sentence"),
    [
        ({"max_autotun": True}, "no option 'max_autotun': did you mean max_autotune"),
        ({"max_autotune": "yes"}, "max_autotune must be a bool, got 'yes'"),
    ],
    ids=["name", "value"],
)
def test_an_option_that_inductor_doesnt_take(inductor: dict[str, object], sentence: str) -> None:
    compiled = torch.compile(adding_dit(1, 2), backend="cachedit", options={"inductor": inductor})
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match=f"inductor: .*{sentence}"):
        run(compiled, toy_inputs(90.0))


def test_an_option_of_inductor_in_either_spelling() -> None:
    for name in ("max_autotune", "max-autotune"):
        torch._dynamo.reset()
        assert assert_cached(gated_dit(2), inductor={name: True}).num_blocks == 2


def test_known_mode() -> None:
    assert assert_cached(gated_dit(2), mode="reduce-overhead").num_blocks == 2


@pytest.mark.parametrize(
    "given", [{}, {"mode": "max-autotune"}, {"inductor": {"max_autotune": True}}]
)
def test_what_is_for_inductor_alone_is_told_to_whom_runs_without_it(
    given: dict[str, object],
) -> None:
    with logged(logging.WARNING) as said:
        assert_cached(gated_dit(2), **given)
    told = [line for line in said if "is for Inductor" in line]
    expected = "{} is for Inductor, and nothing is done of it by inner_backend='eager'"
    assert told == [expected.format(name) for name in given]


def test_mode_and_options_together_are_refused_by_torch() -> None:
    with pytest.raises(RuntimeError, match="Either mode or options can be specified"):
        torch.compile(
            adding_dit(1, 2), backend="cachedit", mode="default", options={"inner_backend": "eager"}
        )


TOO_MANY = (
    r"Fn_compute_blocks=2 \+ Bn_compute_blocks=3 is more than the 4 blocks of this model: lower one"
)


def test_more_first_and_last_blocks_than_there_are_by_configure() -> None:
    compiled = compile_toy(adding_dit(1, 2, 3, 4))
    run(compiled, toy_inputs(90.0))
    with pytest.raises(dc.InvalidConfig, match=TOO_MANY):
        dc.configure(compiled, Fn_compute_blocks=2, Bn_compute_blocks=3)
    assert dc.summary(compiled).graphs[0].region == (1, 4)
    run(compiled, toy_inputs(80.0))


def test_more_first_and_last_blocks_than_there_are_by_options() -> None:
    compiled = compile_toy(adding_dit(1, 2, 3, 4), Fn_compute_blocks=2, Bn_compute_blocks=3)
    with pytest.raises(dc.InvalidConfig, match=TOO_MANY):
        run(compiled, toy_inputs(90.0))


def test_as_many_first_and_last_blocks_as_there_are_compute() -> None:
    model = adding_dit(1, 2, 3, 4)
    compiled = compile_toy(
        model, Fn_compute_blocks=2, Bn_compute_blocks=2, residual_diff_threshold=1.0
    )
    for inputs in toy_steps([90.0, 80.0]):
        torch.testing.assert_close(run(compiled, inputs), run(model, inputs))
    assert [step.hit for step in dc.summary(compiled).steps] == [False, False]
    assert dc.summary(compiled).graphs[0].regions == ()
