"""A computed step and a hit against a plain step, interleaved in one process.

A round times one step of each kind, in turn, so that a slow moment of the machine falls on all of
them. Each timed step follows an untimed one of its kind: no kind starts in the caches that another
one left. Decisions are forced by `configure`, outside of what is timed.
"""

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

import dit_cachegraph
from bench.common.spread import Spread, paired_ratios, spread_of
from bench.speed.engines import (
    CACHEDIT,
    EAGER,
    OURS,
    PLAIN,
    CompiledCounts,
    Model,
    compile_for,
    count_compiled,
    dynamo_counts,
    force_decision,
    num_distinct_segments,
)
from bench.speed.flux import Depth, Inputs, Preset, build_model, image_after_image, make_image
from dit_cachegraph.testing.run import again

COMPUTED, HIT = "computed", "hit"
MAX_ENGINE_ERROR = 1e-4
MAX_HIT_ERROR = 1e-5


@dataclass(frozen=True, slots=True)
class StepResult:
    """`milliseconds`: process CPU time a step, by kind; `to_plain`: ratios round by round;
    `errors`: relative L1, by what was compared; `compiled`: what Dynamo did, by engine."""

    num_rounds: int
    milliseconds: Mapping[str, Spread]
    to_plain: Mapping[str, Spread]
    errors: Mapping[str, float]
    compiled: Mapping[str, CompiledCounts]
    num_distinct_segments: int | None
    num_compiled_while_timing: int


@dataclass(frozen=True, slots=True)
class _Kind:
    """One kind of step: what is called, with which inputs, and what is set before."""

    name: str
    call: Model
    inputs: Iterator[Inputs]
    prepare: Callable[[], None]


def measure_steps(
    preset: Preset, depth: Depth, engines: Sequence[str], num_rounds: int, inner: str = "inductor"
) -> StepResult:
    """Compile, check the outputs, then time. `inner` compiles for all engines but eager.

    Raises:
        RuntimeError: an output is wrong, or a step that was to be a hit wasn't one.
    """
    model, image = build_model(preset, depth), make_image(preset)
    calls = {engine: compile_for(engine, model, inner) for engine in engines}
    compiled = {e: count_compiled(call, image) for e, call in calls.items() if e != EAGER}
    errors = _check_outputs(model, calls, image)
    kinds = _kinds(model, calls, preset)
    # The image that was checked was left half-way, and could go on for all that is known.
    dit_cachegraph.reset(model)
    num_frames = dynamo_counts().num_frames
    times = _time_rounds(kinds, num_rounds)
    ours = [engine for engine in calls if engine in OURS]
    _check_decisions(model, num_rounds, len(ours))
    plain = times.get(PLAIN)
    return StepResult(
        num_rounds=num_rounds,
        milliseconds={name: spread_of(values) for name, values in times.items()},
        to_plain={n: paired_ratios(v, plain) for n, v in times.items() if plain and n != PLAIN},
        errors=errors,
        compiled=compiled,
        num_distinct_segments=num_distinct_segments(model) // len(ours) if ours else None,
        num_compiled_while_timing=dynamo_counts().num_frames - num_frames,
    )


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """sum|got - wanted| / sum|wanted|."""
    return ((got - wanted).abs().sum() / wanted.abs().sum()).item()


def _check_outputs(
    model: nn.Module, calls: Mapping[str, Model], image: Sequence[Inputs]
) -> dict[str, float]:
    """Relative errors against eager, and of a hit against computing the very same input."""
    errors = {}
    if PLAIN in calls:
        errors["plain to eager"] = relative_error(calls[PLAIN](**image[1])[0], model(**image[1])[0])
    for engine in [engine for engine in calls if engine in OURS]:
        errors |= _cache_errors(model, calls[engine], image, engine)
    for name, error in errors.items():
        limit = MAX_HIT_ERROR if name.startswith(HIT) else MAX_ENGINE_ERROR
        if not error <= limit:
            raise RuntimeError(f"relative error of {name} is {error:.2g}, expected at most {limit}")
    return errors


def _cache_errors(
    model: nn.Module, call: Model, image: Sequence[Inputs], engine: str
) -> dict[str, float]:
    dit_cachegraph.reset(model)
    force_decision(model, hit=False)
    # The first clock again would begin an image, and the first step of an image is no hit.
    call(**image[0])
    computed = call(**image[1])[0].clone()
    force_decision(model, hit=True)
    hit = call(**again(image[1], image[0]))[0]
    was_hit = [step.hit for step in dit_cachegraph.summary(model).steps[-3:]]
    if was_hit != [False, False, True]:
        raise RuntimeError(f"forced two computed steps and a hit, and the log has {was_hit}")
    return {
        f"{_kind(COMPUTED, engine)} to eager": relative_error(computed, model(**image[1])[0]),
        f"{_kind(HIT, engine)} to computed": relative_error(hit, computed),
    }


def _kind(decision: str, engine: str) -> str:
    """`hit` by default, `hit, frozen` with frozen weights."""
    return decision if engine == CACHEDIT else f"{decision}, {engine}"


def _kinds(model: nn.Module, calls: Mapping[str, Model], preset: Preset) -> tuple[_Kind, ...]:
    """In the order of a round. A hit follows the computed step whose effect it reuses, and each
    engine draws an image of its own."""
    kinds = []
    for seed, (engine, call) in enumerate(calls.items()):
        inputs = image_after_image(make_image(preset, seed))
        if engine not in OURS:
            kinds.append(_Kind(engine, call, inputs, _nothing))
            continue
        for decision in (COMPUTED, HIT):
            prepare = partial(force_decision, model, hit=decision == HIT)
            kinds.append(_Kind(_kind(decision, engine), call, inputs, prepare))
    return tuple(kinds)


def _nothing() -> None:
    pass


def _time_rounds(kinds: Sequence[_Kind], num_rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {kind.name: [] for kind in kinds}
    # What compilation left behind is large; going through it belongs to no step.
    gc.collect()
    gc.freeze()
    for _ in range(num_rounds):
        for kind in kinds:
            times[kind.name].append(_time_one(kind))
    gc.unfreeze()
    return times


def _time_one(kind: _Kind) -> float:
    """Milliseconds of process CPU time of one call."""
    kind.prepare()
    kind.call(**next(kind.inputs))
    inputs = next(kind.inputs)
    start = time.process_time_ns()
    kind.call(**inputs)
    return (time.process_time_ns() - start) / 1e6


def _check_decisions(model: nn.Module, num_rounds: int, num_engines: int) -> None:
    """Each round was two computed steps and two hits an engine, as far back as steps are kept."""
    steps = dit_cachegraph.summary(model).steps
    num_seen = min(len(steps) // 4, num_rounds * num_engines) * 4
    was_hit = [step.hit for step in steps[len(steps) - num_seen :]]
    if was_hit != [False, False, True, True] * (num_seen // 4):
        raise RuntimeError(
            f"forced {num_seen // 2} hits, and the log has {sum(was_hit)} or others than those"
        )


def seconds_each(function: Callable[[], object], num_calls: int) -> float:
    """Process CPU seconds of one of `num_calls` calls in a row."""
    start = time.process_time_ns()
    for _ in range(num_calls):
        function()
    return (time.process_time_ns() - start) / num_calls / 1e9
