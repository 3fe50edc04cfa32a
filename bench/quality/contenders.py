"""What is compared on every setting: ours, the peers as their documentation recommends for so many
steps, and fewer steps of the setting's own solver.

To add a contender, add a row to a table.
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from bench.quality.draw import Artist, Drawn, Settings, by_ours, by_pipeline, by_solver
from bench.quality.methods import DIFFUSERS, MakePipeline
from bench.quality.pairs import Pair, forecast, pairs
from dit_cachegraph.policy.presets import CHEAPEST_PRESET, PRESETS

OURS, CACHE_DIT, DIFFUSERS_CAMP, FEWER = "ours", "cache-dit", "diffusers", "fewer steps"
UNCACHED = "uncached"
# The uncached model beside itself: what these move was never settled.
NEIGHBOURS: Mapping[str, int] = {"one step less": -1, "one step more": 1}
SHARES_OF_STEPS = (0.75, 0.6, 0.5, 0.45, 0.36, 0.3)
# cache-dit's masks and DBCache with its Taylor calibrator of order 1, as it recommends, and an even
# mask, the best that was found for it on even levels.
PAIR_NAMES = (
    "mask slow order 1",
    "mask fast order 1",
    "mask ultra order 1",
    "F1B0 R0.1 order 1",
    "F1B0 R0.2 order 1",
    "W6 every 2 order 1",
    "W6 every 3 order 1",
)
OF_DIFFUSERS: Mapping[str, Sequence[float]] = {
    "TaylorSeer lite": (3, 4),
    "TaylorSeer lite W6": (2, 3, 4),
    "MagCache": (0.06, 0.12),
}
LINE, CURVE = forecast(1), forecast(2)
# A line that rises half as fast: under high guidance paths bend, and a whole one overshoots.
HALF_LINE: Settings = {"predictor": "hicache", "hicache_order": 1, "hicache_sigma": 0.5}
REPLAY: Settings = {"predictor": "replay"}
DAMPED: Settings = {"predictor": "damped_line", "damped_line_least": 0.25}
# What is forecast is the stream after the blocks, in place of what they add to it: on smooth paths
# it is the smoother of the two in Wan.
OF_VALUES: Settings = {"calibrator_cache_type": "hidden_states"}
OVER_NOISE: Settings = {"rule": "error_control", "paced_over": "noise"}
# Between the presets and around them, and what the presets were until they were paced over noise.
MORE_OF_OURS: Mapping[str, Settings] = {
    "E0.2 over noise": {**OVER_NOISE, "error_tolerance": 0.2, **LINE},
    "E0.2 over noise, order 2": {**OVER_NOISE, "error_tolerance": 0.2, **CURVE},
    "E0.09 over noise, order 2": {**OVER_NOISE, "error_tolerance": 0.09, **CURVE},
    "E0.07 over noise, order 2": {**OVER_NOISE, "error_tolerance": 0.07, **CURVE},
    "E0.06 over noise, order 2": {**OVER_NOISE, "error_tolerance": 0.06, **CURVE},
    "E0.03 over noise, order 2": {**OVER_NOISE, "error_tolerance": 0.03, **CURVE},
    "E0.01 over noise, order 2": {**OVER_NOISE, "error_tolerance": 0.01, **CURVE},
    "E0.1 over steps": {"rule": "error_control", "error_tolerance": 0.1, **LINE},
    "W6 every 2": {"rule": "even", "every": 2, "max_warmup_steps": 6, **LINE},
    "every 3": {"rule": "even", "every": 3, "max_warmup_steps": 1, **LINE},
    "every 3, order 2": {"rule": "even", "every": 3, "max_warmup_steps": 1, **CURVE},
    "every 4": {"rule": "even", "every": 4, "max_warmup_steps": 1, **LINE},
    "W4 every 2": {"rule": "even", "every": 2, "max_warmup_steps": 4, **LINE},
    "W3 every 3, order 2 of values": {
        "rule": "even",
        "every": 3,
        "max_warmup_steps": 3,
        **CURVE,
        **OF_VALUES,
    },
    "W2 every 4, order 2 of values": {
        "rule": "even",
        "every": 4,
        "max_warmup_steps": 2,
        **CURVE,
        **OF_VALUES,
    },
    "W6 every 3": {"rule": "even", "every": 3, "max_warmup_steps": 6, **LINE},
    "every 3, damped": {"rule": "even", "every": 3, "max_warmup_steps": 1, **DAMPED},
    "every 3, half a line": {"rule": "even", "every": 3, "max_warmup_steps": 1, **HALF_LINE},
    "every 4, half a line": {"rule": "even", "every": 4, "max_warmup_steps": 1, **HALF_LINE},
    "E0.1 over noise, half a line": {**OVER_NOISE, "error_tolerance": 0.1, **HALF_LINE},
    "E0.12 over noise, half a line": {**OVER_NOISE, "error_tolerance": 0.12, **HALF_LINE},
    "E0.12 over noise, damped": {**OVER_NOISE, "error_tolerance": 0.12, **DAMPED},
    "E0.3 over noise, half a line": {**OVER_NOISE, "error_tolerance": 0.3, **HALF_LINE},
}


def name_of_preset(preset: str) -> str:
    """What its rows are called."""
    return f'{OURS} "{preset}"'


def to_the_last(every: int, num_steps: int, num_first: int = 1) -> tuple[int, ...]:
    """A mask of the first steps and of one in `every`, the last one among them: on a shifted
    schedule that takes most of the noise away."""
    return tuple(int(i < num_first or (num_steps - 1 - i) % every == 0) for i in range(num_steps))


def all_but_every(every: int, num_steps: int) -> tuple[int, ...]:
    """A mask of all steps but one in `every`, the first two and the last among them."""
    return tuple(int(i < 2 or (num_steps - 1 - i) % every != 1) for i in range(num_steps))


# Of "draft": its rule and its line, with more of the work.
SPREAD_SHARES = (0.3, 0.4, 0.45, 0.5)

# Masks to the last step: what they compute one of, how many first steps, and what they put in the
# place of the others. Under high guidance, and far ahead, a replay is the better forecast.
MASKED: Mapping[str, tuple[int, int, Settings]] = {
    "every 2 to the last": (2, 1, LINE),
    "every 2 to the last, half a line": (2, 1, HALF_LINE),
    "every 2 to the last, replay": (2, 1, REPLAY),
    "every 2 to the last, damped": (2, 1, DAMPED),
    "W4 every 2 to the last, half a line": (2, 4, HALF_LINE),
    "W6 every 2 to the last": (2, 6, LINE),
    "W6 every 2 to the last, of values": (2, 6, {**LINE, **OF_VALUES}),
    "W6 every 2 to the last, half a line": (2, 6, HALF_LINE),
    "W6 every 2 to the last, replay": (2, 6, REPLAY),
    "W6 every 2 to the last, damped": (2, 6, DAMPED),
    "W8 every 2 to the last, half a line": (2, 8, HALF_LINE),
    "W8 every 2 to the last, damped": (2, 8, DAMPED),
    "every 3 to the last": (3, 1, LINE),
    "every 3 to the last, replay": (3, 1, REPLAY),
    "W3 every 3 to the last, half a line": (3, 3, HALF_LINE),
    "W3 every 3 to the last, replay": (3, 3, REPLAY),
    "W3 every 3 to the last, damped": (3, 3, DAMPED),
    "W3 every 3 to the last, order 2": (3, 3, CURVE),
    "W3 every 3 to the last, order 2 of values": (3, 3, {**CURVE, **OF_VALUES}),
    "every 4 to the last": (4, 1, LINE),
    "every 4 to the last, half a line": (4, 1, HALF_LINE),
    "every 4 to the last, replay": (4, 1, REPLAY),
    "every 4 to the last, damped": (4, 1, DAMPED),
    "W3 every 4 to the last, half a line": (4, 3, HALF_LINE),
    "W3 every 4 to the last, damped": (4, 3, DAMPED),
    "W5 every 4 to the last, half a line": (4, 5, HALF_LINE),
    "W6 every 4 to the last, half a line": (4, 6, HALF_LINE),
}


MOSTLY_COMPUTED: Mapping[str, Settings] = {
    "all but every 4th": LINE,
    "all but every 4th, half a line": HALF_LINE,
    "all but every 4th, damped": DAMPED,
}


@dataclass(frozen=True, slots=True)
class Contender:
    """One method. `draw(artist, num_steps)`. `options` are all of ours, as text: a preset that was
    changed is another contender."""

    name: str
    camp: str
    draw: Callable[[Artist, int], Drawn]
    options: str = ""
    is_quick: bool = False


def _uncached() -> Contender:
    def draw(artist: Artist, num_steps: int) -> Drawn:
        return Drawn(artist.uncached(num_steps), 1.0)

    return Contender(UNCACHED, UNCACHED, draw, is_quick=True)


def _neighbour(name: str, num_more: int) -> Contender:
    def draw(artist: Artist, num_steps: int) -> Drawn:
        return by_solver(artist, artist.model.solver(), num_steps + num_more, num_steps)

    return Contender(name, UNCACHED, draw)


def _fewer(share: float) -> Contender:
    def draw(artist: Artist, num_steps: int) -> Drawn:
        solver = artist.model.solver()
        return by_solver(artist, solver, max(2, round(share * num_steps)), num_steps)

    return Contender(f"fewer steps {share:g}", FEWER, draw, is_quick=share in (0.5, 0.36))


def ours(name: str, settings: Settings, *, is_quick: bool = False) -> Contender:
    """By these settings over the defaults. A rule that spreads its steps is told how many there
    are."""

    def draw(artist: Artist, num_steps: int) -> Drawn:
        told = {"num_inference_steps": num_steps} if settings.get("rule") == "spread" else {}
        return by_ours(artist, {**settings, **told}, num_steps)

    options = repr(sorted(settings.items()))
    return Contender(f"ours {name}", OURS, draw, options, is_quick)


def _masked(name: str, mask_of: Callable[[int], Sequence[int]], predictor: Settings) -> Contender:
    def draw(artist: Artist, num_steps: int) -> Drawn:
        mask = mask_of(num_steps)
        return by_ours(artist, {"rule": "fixed", "compute_mask": mask, **predictor}, num_steps)

    return Contender(f"ours {name}", OURS, draw, repr(sorted(predictor.items())))


def _all_of_ours() -> Iterator[Contender]:
    for name, options in PRESETS.items():
        yield ours(f'"{name}"', options, is_quick=True)
    for name, options in MORE_OF_OURS.items():
        yield ours(name, options)
    for share in SPREAD_SHARES:
        yield ours(f"spread {share:g}", {**PRESETS[CHEAPEST_PRESET], "compute_share": share})
    for name, (every, num_first, predictor) in MASKED.items():
        yield _masked(name, partial(to_the_last, every, num_first=num_first), predictor)
    for name, predictor in MOSTLY_COMPUTED.items():
        yield _masked(name, partial(all_but_every, 4), predictor)


def _of_cache_dit(pair: Pair) -> Contender:
    is_quick = pair.full_name == "mask fast order 1"
    return Contender(f"cache-dit {pair.full_name}", CACHE_DIT, pair.by_cache_dit, is_quick=is_quick)


def _of_diffusers(name: str, make: MakePipeline, value: float) -> Contender:
    def draw(artist: Artist, num_steps: int) -> Drawn:
        return by_pipeline(artist, make(artist.model, value, num_steps), num_steps)

    is_quick = (name, value) == ("TaylorSeer lite W6", 2)
    return Contender(f"diffusers {name} {value:g}", DIFFUSERS_CAMP, draw, is_quick=is_quick)


def all_contenders() -> Iterator[Contender]:
    """The uncached pictures first, which the others are compared with."""
    yield _uncached()
    yield from _all_of_ours()
    yield from map(_fewer, SHARES_OF_STEPS)
    yield from (_neighbour(*one) for one in NEIGHBOURS.items())
    if importlib.util.find_spec("cache_dit") is not None:
        yield from (_of_cache_dit(pair) for pair in pairs() if pair.full_name in PAIR_NAMES)
    for name, make, _, _ in DIFFUSERS:
        for value in OF_DIFFUSERS.get(name, ()):
            yield _of_diffusers(name, make, value)
