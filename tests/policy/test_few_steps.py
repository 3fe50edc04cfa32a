"""Models of few steps: the defaults do no harm, and the report says where there is no gain."""

import pytest
import torch

import dit_cachegraph as dc
from dit_cachegraph.few_steps import why_nothing_gained
from dit_cachegraph.policy.presets import CHEAPEST_PRESET, PRESETS
from dit_cachegraph.step_log import StepReport
from support.image_runs import image_of
from support.running import compile_cached, relative_error, run_all
from support.tiny_models import FLUX, WAN
from support.toy_dits import GatedBlock, ReadingDiT, toy_inputs

# "draft" computes a third of the steps, however few there are.
PACED = [name for name in PRESETS if name != CHEAPEST_PRESET]
DEFAULTS = [{}, *({"preset": name} for name in PACED), {"rule": "dbcache"}, {"rule": "dbprune"}]


@pytest.mark.parametrize("tiny", [FLUX, WAN], ids=lambda tiny: tiny.name)
def test_up_to_three_steps_are_all_computed(tiny):
    """Whatever default: the outputs are those of eager mode."""
    model = tiny.build(4)
    compiled = compile_cached(model)
    for num_steps in (1, 2, 3):
        for i, settings in enumerate(DEFAULTS):
            dc.configure(compiled, preset="balanced")
            dc.configure(compiled, **settings)
            image = image_of(model, tiny, seed=i, size=3, num_steps=num_steps)
            for ran, kwargs in zip(run_all(compiled, image), image, strict=True):
                assert not ran.hit
                assert relative_error(ran.output, model(**kwargs)[0]) < 1e-5
    assert dc.summary(compiled).num_hits == 0


def test_a_draft_computes_a_third_of_the_steps_however_few():
    model = FLUX.build(4)
    compiled = compile_cached(model, preset=CHEAPEST_PRESET)
    three = [0, 3, 6]
    for num_steps, not_told, told in (
        (4, [0, 3], [0, 3]),
        (7, three, three),
        (8, three, [0, 3, 7]),
    ):
        for told_steps, computed in ((None, not_told), (num_steps, told)):
            dc.configure(compiled, num_inference_steps=told_steps)
            image = image_of(model, FLUX, seed=num_steps, size=3, num_steps=num_steps)
            hits = [ran.hit for ran in run_all(compiled, image)]
            assert [step for step in range(num_steps) if not hits[step]] == computed


def test_cache_dits_default_computes_eight():
    model = WAN.build(4)
    compiled = compile_cached(model, rule="dbcache", residual_diff_threshold=2.0)
    image = image_of(model, WAN, size=3, num_steps=8)
    assert not any(ran.hit for ran in run_all(compiled, image))
    assert (
        "8 steps, all within warm-up: nothing to gain in so few, unless a shorter warm-up "
        "(max_warmup_steps) is good enough"
    ) in str(dc.summary(compiled)).splitlines()
    # The neighbour: the ninth step is reused, and nothing is to be said.
    image = image_of(model, WAN, seed=1, size=3, num_steps=9)
    assert [ran.hit for ran in run_all(compiled, image)] == [False] * 8 + [True]
    assert "to gain" not in str(dc.summary(compiled))


@pytest.mark.parametrize("num_steps", [4, 12])
def test_settings_that_leave_no_block_to_skip(num_steps):
    """It isn't the number of steps then."""
    model = WAN.build(4)
    compiled = compile_cached(model, Fn_compute_blocks=3, Bn_compute_blocks=1)
    image = image_of(model, WAN, size=3, num_steps=num_steps)
    assert not any(ran.hit for ran in run_all(compiled, image))
    said = str(dc.summary(compiled))
    assert (
        "no block that could be skipped: lower Fn_compute_blocks or" in said
        and "to gain" not in said
    )


def test_a_loop_that_leaves_the_timestep_as_it_is():
    """As those who time a model write it: whoever looks why nothing was reused is told."""
    model = WAN.build(4)
    compiled = compile_cached(model, residual_diff_threshold=2.0, max_warmup_steps=1)
    first, *others = image_of(model, WAN, size=3, num_steps=4)
    still = [first, *({**step, "timestep": first["timestep"]} for step in others)]
    assert not any(ran.hit for ran in run_all(compiled, still))
    said = str(dc.summary(compiled))
    assert "each call was taken for an image of one step (timestep " in said
    assert "to time a hit, move them as a sampler does" in said


def test_a_timestep_that_is_embedded_where_nothing_is_compiled():
    """Each call comes with an embedding that nobody knows, as a prompt does."""
    model = ReadingDiT([GatedBlock() for _ in range(3)]).eval()
    model.embed.forward = torch.compiler.disable(model.embed.forward)
    compiled = torch.compile(model, backend="cachedit", options={"inner_backend": "eager"})
    with torch.no_grad():
        for angle in (90.0, 80.0, 70.0, 60.0):
            compiled(**toy_inputs(angle))
    said = str(dc.summary(compiled))
    assert "each of the last 4 calls was taken for a request of its own" in said


def steps_of(reason: str, timesteps: list[float | None], hits: int = 0) -> list[StepReport]:
    num = len(timesteps)
    return [
        StepReport(i, t, i >= num - hits, "new image" if i == 0 else reason, None, "1")
        for i, t in enumerate(timesteps)
    ]


def requests_at(timesteps: list[float | None], reason: str = "new image") -> list[StepReport]:
    """A call of each of so many requests."""
    return [StepReport(0, t, False, reason, None, f"#{i}") for i, t in enumerate(timesteps)]


FOUR = [1.0, 0.9, 0.75, 0.5]  # As FLUX schnell's, with a shift of 3.
SAID = [
    (steps_of("due after 1", FOUR), "4 steps, none reused: there is little to gain in so few"),
    (steps_of("warmup", FOUR), "4 steps, all within warm-up: nothing to gain"),
    (steps_of("warmup", [1000.0 - 50 * i for i in range(20)]), "20 steps, all within warm-up"),
    (steps_of("warmup", [None] * 4), "4 steps, all within warm-up"),
    (steps_of("due", [0.0, 0.3, 0.6]), "3 steps, none reused"),
    (steps_of("due", [1.0]) * 2, "each call was taken for an image of one step (timestep 1): noth"),
    (
        [*steps_of("due", [1.0]), *steps_of("due", [0.9])],
        "each call was taken for an image of one step: nothing to gain in so few. The steps of one",
    ),
    (requests_at([None] * 5), "each of the last 4 calls was taken for a request of its own"),
    (requests_at([950.0, 930.0, 910.0, 890.0]), "each of the last 4 calls was taken for a req"),
    (requests_at([0.1, 0.1, 0.2, 0.2]), "each of the last 4 calls was taken for a request of"),
    (steps_of("due", [None]) * 2, "each call was taken for an image of one step: nothing to gain"),
]  # fmt: skip
SILENT = [
    [],
    steps_of("due", [1.0]),
    steps_of("due after 1 steps", FOUR, hits=1),
    steps_of("warmup", [1.0, 0.97, 0.94, 0.91]),  # Under way.
    steps_of("diff 0.3 >= 0.1", [1000.0 - 50 * i for i in range(20)]),
    steps_of("disabled", FOUR),
    steps_of("dry run", FOUR),
    steps_of("mask", FOUR),
    steps_of("threshold 0", FOUR),
    requests_at([None] * 3),
    requests_at([1000.0] * 8),  # Images that begin, or are of one step.
    requests_at([1000.0, 900.0, 1000.0, 900.0]),
    requests_at([None] * 4, "disabled"),
]


@pytest.mark.parametrize(("steps", "sentence"), SAID, ids=lambda x: str(x)[-40:])
def test_what_is_said(steps, sentence):
    assert why_nothing_gained(steps).startswith(sentence)


@pytest.mark.parametrize("steps", SILENT, ids=lambda x: str(x)[-40:])
def test_nothing_is_said(steps):
    assert why_nothing_gained(steps) is None
