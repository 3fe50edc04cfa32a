"""Error control and the guard: intervals and errors against an eager oracle, step by step; and the
guard's error against two real runs."""

import copy
import random
from contextlib import nullcontext

import pytest
import torch
from torch._dynamo.utils import counters

import dit_cachegraph as dc
from dit_cachegraph.exc import InvalidConfig
from dit_cachegraph.policy.rule import Decision, History, Observation, StepResult
from dit_cachegraph.policy.rules.error_control import ErrorControl
from oracles.schedule import ScheduleOracle
from support.running import compile_cached, relative_error, run_all
from support.tiny_models import FLUX, SD3, WAN, trajectory

DEPTH = 4


class Pacer:
    """When to compute next, from the errors seen: the text of the rule put into code."""

    def __init__(self, tolerance: float, max_gap: int, min_error_steps: int) -> None:
        self.tolerance, self.max_gap, self.first = tolerance, max_gap, min_error_steps
        self.gap, self.due = 1.0, 0

    def is_hit(self, now: int, errors: dict[int, float]) -> bool:
        last = self.due if now > 0 else None
        if last is not None and now > last:
            raise AssertionError("a computed step was missed")
        return now < self.due

    def computed(self, now: int, errors: dict[int, float]) -> None:
        if now >= self.first and now in errors:
            wanted = 0.9 * self.tolerance / errors[now]
            self.gap = min(max(self.gap * min(max(wanted, 0.5), 1.5), 1.0), self.max_gap)
        else:
            self.gap = 1.0
        self.due = now + round(self.gap)


def steps_of(model, tiny, image: int, num_steps: int = 12):
    inputs = tiny.make_inputs(model, batch=2, size=3, text_tokens=5, seed=image)
    return list(trajectory(tiny, inputs, num_steps, seed=image))


@pytest.mark.parametrize(
    "tiny", [FLUX, WAN, pytest.param(SD3, marks=pytest.mark.slow)], ids=lambda tiny: tiny.name
)
def test_every_step_equals_the_oracle(tiny):
    rng = random.Random(tiny.name)
    model = tiny.build(DEPTH)
    compiled = compile_cached(model, rule="error_control")
    torch._dynamo.reset()
    counters.clear()
    num_hits = 0
    for image in range(12):
        pacer = Pacer(rng.choice([0.1, 0.3, 0.6, 1.0]), rng.randint(1, 5), rng.randint(1, 4))
        order = rng.choice([0, 1, 1, 2])
        dc.configure(
            compiled, error_tolerance=pacer.tolerance, max_gap=pacer.max_gap,
            min_error_steps=pacer.first, taylorseer_order=order,
        )  # fmt: skip
        oracle = ScheduleOracle(model, tiny, lambda o, p=pacer: p.is_hit(o.now, o.errors), order)
        for i, kwargs in enumerate(steps_of(model, tiny, image)):
            with torch.no_grad():
                actual = compiled(**kwargs)[0]
            expected, hit = oracle.step(**kwargs)
            if not hit:
                pacer.computed(i, oracle.errors)
            last = dc.summary(compiled).steps[-1]
            assert last.hit == hit, f"step {i} of image {image}: {last.reason}"
            assert relative_error(actual, expected) < 1e-5, f"step {i} of image {image}"
            if i in oracle.errors:
                assert last.observed_error == pytest.approx(oracle.errors[i], rel=1e-3)
            else:
                assert last.observed_error is None
            num_hits += hit
    assert counters["stats"]["unique_graphs"] == 1
    assert num_hits > 12


@pytest.mark.parametrize(
    "request_of",
    [nullcontext, lambda: dc.request("A"), lambda: dc.request("A", num_inference_steps=16)],
    ids=["unnamed", "named", "counted"],
)
@pytest.mark.parametrize("is_heun", [False, True], ids=["once", "Heun"])
def test_guidance_branches_compute_and_reuse_together(request_of, is_heun):
    """At the steps that the worse of the two asks for; each is paced by errors of its own. Where
    the steps are counted no timestep is read. By Heun each timestep but the first comes twice."""
    model = WAN.build(DEPTH)
    compiled = compile_cached(
        model, error_tolerance=0.3, paced_over="steps", max_gap=4, taylorseer_order=1
    )
    branches = [steps_of(model, WAN, seed, num_steps=16) for seed in (0, 7)]
    if is_heun:
        for first, second in zip(branches[0][1::2], branches[0][2::2], strict=False):
            second["timestep"] = first["timestep"]
    for cond, uncond in zip(*branches, strict=True):
        uncond |= {"hidden_states": cond["hidden_states"], "timestep": cond["timestep"]}
    pacers = [Pacer(0.3, 4, 2) for _ in branches]
    due = [0, 0]
    oracles = [ScheduleOracle(model, WAN, lambda o: o.now < min(due), 1) for _ in branches]
    hits = []
    for i, pair in enumerate(zip(*branches, strict=True)):
        for kwargs, oracle in zip(pair, oracles, strict=True):
            with torch.no_grad(), request_of():
                actual = compiled(**kwargs)[0]
            expected, hit = oracle.step(**kwargs)
            last = dc.summary(compiled).steps[-1]
            assert last.hit == hit, f"step {i}: {last.reason}"
            assert relative_error(actual, expected) < 1e-5
        hits.append(hit)
        for k, pacer in enumerate(pacers):
            if not hit:
                pacer.computed(i, oracles[k].errors)
            due[k] = pacer.due
    reasons = [step.reason for step in dc.summary(compiled).steps]
    assert 3 < sum(hits) < 14
    assert "as the other guidance branch" in reasons
    assert any(reason.startswith("due on another guidance branch") for reason in reasons)


@pytest.mark.parametrize(
    "request_of", [nullcontext, lambda: dc.request("A", num_inference_steps=16)]
)
def test_over_noise_a_step_computes_where_the_timesteps_have_come_far_enough(request_of):
    """By the errors that were seen, on two guidance branches with a schedule shifted by 3."""
    model = WAN.build(DEPTH)
    compiled = compile_cached(model, error_tolerance=0.3, paced_over="noise", max_gap=5)
    cond, uncond = (steps_of(model, WAN, seed, num_steps=16) for seed in (0, 7))
    levels = [3 * (1 - i / 16) / (1 + 2 * (1 - i / 16)) for i in range(16)]
    errors: list[list[float | None]] = [[], []]
    hits = []
    for level, *pair in zip(levels, cond, uncond, strict=True):
        pair[1]["hidden_states"] = pair[0]["hidden_states"]
        for seen, kwargs in zip(errors, pair, strict=True):
            kwargs["timestep"] = torch.full_like(kwargs["timestep"], 1000 * level)
            with torch.no_grad(), request_of():
                compiled(**kwargs)
            seen.append(dc.summary(compiled).steps[-1].observed_error)
        hits.append(dc.summary(compiled).steps[-1].hit)
    assert hits == _hits_over_noise(levels, errors) and 3 < sum(hits) < 13


def _hits_over_noise(levels, errors) -> list[bool]:
    """With a tolerance of 0.3 a tenth of the noise, two first steps and at most 5 from one computed
    step to the next; a step computes where one of the branches asks for it."""
    hits, gaps, last = [], [0.0, 0.0], 0
    for step, level in enumerate(levels):
        distance, stride = levels[last] - level, levels[max(step - 1, 0)] - level
        is_near = all(distance + stride / 2 < gap for gap in gaps)
        hits.append(step > 0 and is_near and step - last < 5)
        if hits[-1]:
            continue
        for i, seen in enumerate(errors):
            if step >= 2:
                change = (0.9 * 0.3 / (seen[step] * distance / 0.1)) ** 0.5
                gaps[i] = max(gaps[i], distance) * min(max(change, 0.5), 1.5)
        last = step
    return hits


def test_copies_are_made_at_computed_steps_alone(host_copies):
    """Paced over steps, which are counted."""
    model = FLUX.build(DEPTH)
    compiled = compile_cached(
        model, error_tolerance=0.6, paced_over="steps", min_error_steps=1, num_inference_steps=20
    )
    copies = []
    with torch.no_grad(), dc.request("A"):
        for kwargs in steps_of(model, FLUX, 0):
            compiled(**kwargs)
            copies.append(len(host_copies))
            host_copies.clear()
    hits = [step.hit for step in dc.summary(compiled).steps]
    assert sum(hits) > 2
    # The first step has nothing to compare with.
    assert copies == [0] + [0 if hit else 1 for hit in hits[1:]]


def test_a_new_image_is_noticed_under_the_same_key():
    """Also where the pace of the one before would go on reusing."""
    model = FLUX.build(DEPTH)
    compiled = compile_cached(model, error_tolerance=5.0, min_error_steps=1, max_gap=8)
    with dc.request("A"):
        first = run_all(compiled, steps_of(model, FLUX, 0, num_steps=7))
        second = run_all(compiled, steps_of(model, FLUX, 0, num_steps=7))
    assert first[-1].hit
    assert [ran.hit for ran in second] == [ran.hit for ran in first]
    assert second[0].reason == "new image"


def test_the_observed_error_is_that_of_two_real_runs():
    """One run computes every step, the other reuses at step 3: the error of the last block's output
    that the guard saw in the first is how far the second one was off."""
    model = FLUX.build(DEPTH)
    steps = steps_of(model, FLUX, 0, num_steps=4)
    blocks_out: list[torch.Tensor] = []
    handle = model.norm_out.register_forward_pre_hook(lambda _, args: blocks_out.append(args[0]))
    with torch.no_grad():
        for kwargs in steps:
            model(**kwargs)
    handle.remove()
    compiled = compile_cached(model, Fn_compute_blocks=1, residual_diff_threshold=0.0,
                              max_warmup_steps=0, observe_error=True)  # fmt: skip
    run_all(compiled, steps)
    seen = dc.summary(compiled).steps[3].observed_error
    dc.configure(compiled, steps_computation_mask=[1, 1, 1, 0], steps_computation_policy="static")
    reused: list[torch.Tensor] = []
    twin = compile_cached(_with_probe(model, reused), Fn_compute_blocks=1, max_warmup_steps=0,
                          steps_computation_mask=[1, 1, 1, 0], steps_computation_policy="static",
                          )  # fmt: skip
    assert [r.hit for r in run_all(twin, steps)] == [False, False, False, True]
    moved = (reused[-1] - blocks_out[-1]).abs().flatten(1).sum(1)
    size = blocks_out[-1].abs().flatten(1).sum(1)
    assert seen == pytest.approx((moved / size).max().item(), rel=1e-3)


def _with_probe(model, seen: list[torch.Tensor]):
    """The same model, but that its output is what enters the last norm."""

    class Bare(torch.nn.Module):
        def forward(self, hidden_states, temb):
            return hidden_states

    bare = copy.deepcopy(model)
    bare.norm_out, bare.proj_out = Bare(), torch.nn.Identity()

    class Recording(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = bare

        def forward(self, **kwargs):
            return self.model(**kwargs)

    recording = Recording()
    recording.register_forward_hook(lambda _, args, out: seen.append(out[0].clone()))
    return recording


def test_a_run_that_drifts_is_caught_at_the_next_computed_step():
    """The text changes half-way, where nobody counts writes: only its effect shows."""
    model = FLUX.build(DEPTH)
    compiled = compile_cached(
        model, Fn_compute_blocks=1, max_warmup_steps=0, observe_error=True,
        steps_computation_mask=[1, 1, 0, 1, 0, 1, 0, 1, 0, 0], steps_computation_policy="static",
    )  # fmt: skip
    calm = _errors_with_other_text_from(10, model, compiled)
    bound = 1.2 * max(error for error in calm if error is not None)
    dc.configure(compiled, max_observed_error=bound)
    errors = _errors_with_other_text_from(4, model, compiled)
    ran = dc.summary(compiled).steps[-10:]
    assert [step.hit for step in ran[:5]] == [False, False, True, False, True]
    assert errors[3] == calm[3] and errors[5] > bound
    assert {step.reason for step in ran[6:]} == {
        f"observed error {errors[5]:.3g} > {bound:g}",
        f"observed error {max(errors[5:]):.3g} > {bound:g}",
    }


def test_a_step_that_made_no_numbers_is_replayed_by_no_guarded_one():
    model = FLUX.build(DEPTH)
    compiled = compile_cached(
        model, Fn_compute_blocks=1, max_warmup_steps=0, max_observed_error=10.0,
        steps_computation_mask=[1, 1, 0, 1, 0, 0], steps_computation_policy="static",
    )  # fmt: skip
    steps = list(steps_of(model, FLUX, 0, num_steps=6))
    steps[3] = {**steps[3], "hidden_states": steps[3]["hidden_states"] * float("nan")}
    ran = run_all(compiled, steps)
    assert [step.hit for step in ran] == [False, False, True, False, False, False]
    assert ran[5].reason == "observed error inf > 10"
    assert ran[5].output.isfinite().all()


def _errors_with_other_text_from(changed_at: int, model, compiled) -> list[float]:
    steps = steps_of(model, FLUX, 0, num_steps=10)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for i, kwargs in enumerate(steps):
            for text in (kwargs["encoder_hidden_states"], kwargs["pooled_projections"]):
                if i == changed_at:
                    text.data.copy_(3 * torch.randn(text.shape, generator=generator))
            compiled(**kwargs)
    return [step.observed_error for step in dc.summary(compiled).steps[-10:]]


@pytest.mark.parametrize("error", [float("nan"), float("inf"), 0.0])
def test_errors_that_are_no_numbers(error):
    """NaN and infinity compute at once again; no error at all lengthens by the most there is."""
    rule = ErrorControl(error_tolerance=0.1, min_error_steps=1)
    history = History(step=4, memory=rule.remember(History(), _computed(None)))
    pace = rule.remember(history, _computed(error))
    assert pace.next_step == (6 if error == 0.0 else 5)


@pytest.mark.parametrize("error", [float("nan"), float("inf"), 0.0])
def test_errors_that_are_no_numbers_over_noise(error):
    rule = ErrorControl(error_tolerance=0.1, min_error_steps=1, paced_over="noise")
    before = rule.remember(History(), _computed(None, noise=0.9))
    pace = rule.remember(History(step=4, memory=before), _computed(error, noise=0.7))
    assert pace.gap == pytest.approx(0.3 if error == 0.0 else 0.0)
    assert pace.is_due(5, 0.65) == (error != 0.0)


def _computed(error: float | None, noise: float | None = None) -> StepResult:
    return StepResult((Decision(False, ""),), Observation(noise=noise), error)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("error_tolerance", -1), ("error_tolerance", None), ("max_gap", 0), ("min_error_steps", 0),
        ("paced_over", "time"),
    ],
)  # fmt: skip
def test_bad_values_are_named(name, value):
    with pytest.raises(InvalidConfig, match=f"{name} must be"):
        ErrorControl(**{name: value})
