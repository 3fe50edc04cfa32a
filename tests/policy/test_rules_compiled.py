"""The rules of the field on compiled models: every decision is what the source says of the true
values, one graph serves all of them, and a step reads from the device what it must."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.utils import counters

import dit_cachegraph as dc
from oracles import rules as rule_oracles
from oracles.signals import run_eagerly
from support.image_runs import image_of
from support.reads import num_reads
from support.running import compile_cached, relative_error, run_all
from support.tiny_models import DIT, FLUX, SD3, WAN

pytestmark = pytest.mark.e2e
NUM_STEPS = 10
thresholds = st.floats(0.01, 2.0)
warmups = st.integers(0, 4)


def arrays(tensors) -> np.ndarray:
    return np.stack([t.double().numpy() for t in tensors])


class Case:
    """A compiled model, one image for it, and the true values of each of its steps."""

    def __init__(self, tiny=FLUX, grid=(4, 4)) -> None:
        self.model = tiny.build(4)
        self.image = image_of(self.model, tiny, num_steps=NUM_STEPS)
        self.eager = run_eagerly(self.model, tiny, self.image)
        self.inputs, self.outputs = arrays(self.eager.inputs), arrays(self.eager.outputs)
        self.signals = arrays(self.eager.signals)
        self.gridded = self.signals.reshape(*self.signals.shape[:2], *grid, -1)
        level = [float(kwargs["timestep"].max()) for kwargs in self.image]
        self.noises = [t / 1000 if t > 1 else t for t in level]
        self.compiled = compile_cached(self.model)

    def hits(self, **options: object) -> list[bool]:
        """What the compiled model decided; what it computed is what eager computes."""
        dc.reset(self.compiled)
        dc.configure(self.compiled, **options)
        ran = run_all(self.compiled, self.image)
        for step, expected in zip(ran, self.eager.outputs, strict=True):
            assert step.hit or relative_error(step.output, expected) < 1e-5
        return [step.hit for step in ran]


def test_each_on_one_graph_as_its_source_says():
    case = Case()
    torch._dynamo.reset()
    counters.clear()
    num_reused: dict[str, set[int]] = {}

    @settings(max_examples=50)
    @given(thresholds, warmups, st.booleans(), st.booleans(), st.integers(0, 2**32 - 1))
    def check(threshold, warmup, mean, is_told, seed):
        num_steps = NUM_STEPS if is_told else None
        shared = {"num_inference_steps": num_steps, "batch_rule": "mean" if mean else "max"}
        of = {"max_warmup_steps": warmup, **shared}
        rest = (warmup, num_steps, mean)
        ratios = np.exp(np.random.default_rng(seed).normal(size=14) * 0.2).tolist()
        runs = {
            "teacache": (
                case.hits(rule="teacache", teacache_threshold=threshold, **of),
                rule_oracles.teacache(case.signals, threshold, (1.0, 0.0), *rest),
            ),
            "seacache": (
                case.hits(
                    rule="seacache", seacache_threshold=threshold, seacache_grid=(4, 4), **of
                ),
                rule_oracles.seacache(case.gridded, case.noises, threshold, None, *rest),
            ),
            "easycache": (
                case.hits(rule="easycache", easycache_threshold=threshold, **of),
                rule_oracles.easycache(case.inputs, case.outputs, threshold, *rest),
            ),
            "magcache": (
                case.hits(
                    rule="magcache",
                    mag_ratios=ratios,
                    magcache_threshold=threshold,
                    num_inference_steps=num_steps,
                ),
                rule_oracles.magcache(ratios, NUM_STEPS, threshold, 3, 0.2, num_steps),
            ),
        }
        for name, (actual, wanted) in runs.items():
            assert actual == wanted, name
            num_reused.setdefault(name, set()).add(sum(actual))

    check()
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["recompiles"]
    # Else nothing would have been tried.
    assert all(len(seen) > 3 for seen in num_reused.values()), num_reused


@pytest.mark.parametrize(
    ("tiny", "grid"), [(SD3, (4, 4)), (DIT, (4, 4)), (WAN, (2, 4, 4))], ids=lambda x: str(x)[:20]
)
def test_seacache_sees_the_grid_of_latents_that_have_one(tiny, grid):
    case = Case(tiny, grid)
    reused = set()
    for threshold in (0.05, 0.1, 0.2, 0.4, 0.8):
        wanted = rule_oracles.seacache(case.gridded, case.noises, threshold)
        assert case.hits(rule="seacache", seacache_threshold=threshold) == wanted
        reused.add(sum(wanted))
    assert len(reused) > 1


def test_seacache_does_not_guess_the_grid_of_packed_latents():
    case = Case()
    with pytest.raises(dc.InvalidConfig, match=r"say it as seacache_grid=\(height, width\)"):
        case.hits(rule="seacache")
    with pytest.raises(dc.InvalidConfig, match=r"\(4, 5\) has 20 tokens, and block 0 .* 16$"):
        case.hits(seacache_grid=(4, 5))
    assert not any(case.hits(seacache_grid=(2, 8), seacache_threshold=0.0))


@torch.no_grad()
def test_configure_says_so_once_the_graph_is_known():
    case = Case()
    dc.configure(case.compiled, rule="even", every=3)
    case.compiled(**case.image[0])
    with pytest.raises(dc.InvalidConfig, match=r"say it as seacache_grid=\(height, width\)"):
        dc.configure(case.compiled, rule="seacache")
    assert case.hits() == [False, False, True, True, False, True, True, False, True, True]
    dc.configure(case.compiled, rule="seacache", seacache_grid=(4, 4))


@pytest.mark.parametrize("tiny", [FLUX, WAN], ids=lambda tiny: tiny.name)
def test_the_signal_at_other_sizes_of_one_dynamic_graph(tiny):
    model = tiny.build(4)
    compiled = compile_cached(model, rule="teacache", max_warmup_steps=1)
    for size, threshold in ((4, 0.1), (6, 0.3), (8, 0.2)):
        image = image_of(model, tiny, size=size, num_steps=6)
        dc.configure(compiled, teacache_threshold=threshold)
        signals = arrays(run_eagerly(model, tiny, image).signals)
        hits = [step.hit for step in run_all(compiled, image)]
        assert hits == rule_oracles.teacache(signals, threshold)


def reads_of(
    case: Case, key: str | None, host_copies: list[int], **options: object
) -> tuple[list[int], set[bool]]:
    """How often each step of an image reads, and what its steps decided."""
    dc.reset(case.compiled)
    dc.configure(case.compiled, **options, num_inference_steps=NUM_STEPS)
    counts, hits = [], set()
    with nullcontext() if key is None else dc.request(key):
        for kwargs in case.image:
            counts.append(num_reads(case.compiled, kwargs, host_copies))
            hits.add(dc.summary(case.compiled).steps[-1].hit)
    return counts, hits


STATIC = {
    "steps_computation_mask": dc.steps_mask(total_steps=NUM_STEPS),
    "steps_computation_policy": "static",
}
MAGCACHE = {"rule": "magcache", "mag_ratios": (1.0,) * NUM_STEPS, "magcache_threshold": 1.0}
READS = [
    ("a", MAGCACHE, [0] * NUM_STEPS),
    ("b", STATIC, [0] * NUM_STEPS),
    (None, MAGCACHE, [1] * NUM_STEPS),
    ("c", {"rule": "easycache", "easycache_threshold": 0.5, "max_warmup_steps": 3}, None),
    ("d", {"rule": "teacache", "teacache_threshold": 0.3}, None),
    ("e", {"rule": "seacache", "seacache_threshold": 0.3, "seacache_grid": (4, 4)}, None),
]


def test_reads_from_the_device_at_each_step(host_copies):
    """None within a named request for a schedule, else one; the guard's costs another."""
    case = Case()
    with torch.no_grad():
        case.compiled(**case.image[0])
    for key, options, counts in READS:
        assert reads_of(case, key, host_copies, **options) == (
            counts or [1] * NUM_STEPS,
            {True, False},
        )
    even = {"rule": "even", "every": 2, "max_warmup_steps": 1, "observe_error": True}
    counts, _ = reads_of(case, "f", host_copies, **even)
    assert counts == [0, 0, 1, 0, 1, 0, 1, 0, 1, 0]


def test_switched_in_the_middle_of_an_image_none_goes_by_what_another_left():
    case = Case()
    anything = 1e9
    tea = {"rule": "teacache", "teacache_threshold": anything}
    easy = {"rule": "easycache", "easycache_threshold": anything, "max_warmup_steps": 0}
    mag = {**MAGCACHE, "magcache_threshold": anything, "retention_ratio": 0.0, "max_skip_steps": 1}
    unknown = "the output's change is not known yet"
    reused = "1 reused in a row"
    plan = [
        (tea, "warmup"),
        (tea, "hit"),
        (easy, "region changed"),
        (easy, unknown),
        (easy, "hit"),
        (tea, "region changed"),
        (easy, "region changed"),
        (easy, unknown),
        (mag, "region changed"),
        (mag, "hit"),
    ]
    for (options, reason), kwargs in zip(plan, case.image, strict=True):
        dc.configure(case.compiled, **options)
        ran = run_all(case.compiled, [kwargs])[0]
        assert ran.reason.split(",")[0] == reason
    assert run_all(case.compiled, case.image[:1])[0].reason == "new image"
    ran = run_all(case.compiled, case.image[1:4])
    assert [step.reason.split(",")[0] for step in ran] == ["hit", reused, "hit"]
