"""Calibration: the best mask against every mask there is, and promises kept on pictures that the
search has not seen."""

import functools
import itertools
import json
import logging
import math

import matplotlib.image
import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

import dit_cachegraph as dc
from dit_cachegraph.calibration.find_mask import find_masks, reuse_costs
from dit_cachegraph.calibration.pictures import as_array, psnr_db, ssim
from dit_cachegraph.calibration.points import Point
from dit_cachegraph.calibration.result import CalibratedConfig
from dit_cachegraph.calibration.rival import FewerSteps, num_steps_for
from dit_cachegraph.calibration.rounding import below_noise, rounding_noise
from dit_cachegraph.config import resolve
from dit_cachegraph.demo.flux_scenes import draw, embed, load_pipeline, shipped_prompts
from dit_cachegraph.models import REGISTRY
from dit_cachegraph.policy.predictors.taylorseer import TaylorSeer
from dit_cachegraph.policy.recorded import Recorded
from links.linked import SwitchedDiT, call, compile_blocks, watch
from support.logged import logged
from support.toy_dits import CrossDiT, gated_dit, toy_inputs
from support.toy_runs import compile_toy, run, toy_steps

ORDER_1 = TaylorSeer(taylorseer_order=1)


def recording(num_steps: int, seed: int) -> list[Recorded]:
    generator = torch.Generator().manual_seed(seed)
    effects = torch.randn(num_steps, 2, 8, generator=generator).cumsum(0)
    out = torch.full((2, 8), 4.0)
    return [Recorded(None, (effect,), (out,)) for effect in effects]


def cost_of(mask: tuple[int, ...], recordings: list[list[Recorded]]) -> float:
    """The squared errors of a mask's reused steps, added up: straight lines through the last two
    computed values."""
    total = 0.0
    for s, computes in enumerate(mask):
        if computes:
            continue
        i, j = [k for k in range(s) if mask[k]][-2:]
        errors = []
        for steps in recordings:
            a, b, now = (steps[k].effects[0] for k in (i, j, s))
            line = b + (b - a) / (j - i) * (s - j)
            errors.append(float((now - line).abs().sum() / steps[s].outs[0].abs().sum()) ** 2)
        total += sum(errors) / len(errors)
    return total


@pytest.mark.parametrize("seed", range(5))
def test_masks_are_the_best_of_all_there_are(seed):
    num_steps = 9
    recordings = [recording(num_steps, seed), recording(num_steps, 100 + seed)]
    masks = find_masks(reuse_costs(recordings, ORDER_1))
    assert set(masks) == set(range(2, num_steps + 1))
    for count, mask in masks.items():
        every = [
            (1, 1, *rest)
            for rest in itertools.product((0, 1), repeat=num_steps - 2)
            if sum(rest) == count - 2
        ]
        best = min(cost_of(other, recordings) for other in every)
        assert sum(mask) == count
        assert cost_of(mask, recordings) == pytest.approx(best, rel=1e-5, abs=1e-9)


def test_masks_of_next_to_no_steps():
    assert find_masks(np.full((2, 2, 2), math.inf)) == {2: (1, 1)}


def test_a_run_of_reused_steps_is_bounded():
    masks = find_masks(reuse_costs([recording(16, 0)], ORDER_1))
    assert all("0" * 9 not in "".join(map(str, mask)) for mask in masks.values())
    assert min(masks) > 2


@pytest.mark.parametrize(
    ("drawn", "reference", "expected"),
    [
        (np.full((2, 2), 0.5), np.full((2, 2), 0.6), 20.0),
        (np.array([0.0, 4.0]), np.array([-1.0, 3.0]), 20 * math.log10(4)),
        (np.ones(3), np.ones(3), math.inf),
    ],
)
def test_psnr(drawn, reference, expected):
    assert psnr_db(drawn, reference) == pytest.approx(expected)


def test_pictures_of_any_kind():
    array = np.array([[0, 255], [51, 102]], np.uint8)
    half = torch.tensor([[0.0, 1.0], [0.2, 0.4]], dtype=torch.float16)
    for drawn in (array, [array], torch.from_numpy(array), half):
        np.testing.assert_allclose(as_array(drawn).reshape(2, 2), [[0, 1], [0.2, 0.4]], atol=1e-3)
    with pytest.raises(ValueError, match=r"pictures of \(2,\) and \(3,\) can't be compared"):
        psnr_db(np.ones(2), np.ones(3))


@pytest.mark.parametrize("size", [(16, 11, 3), (2, 3, 12, 20), (1, 24, 24), (3, 16, 16, 1)])
def test_ssim_is_that_of_scikit_image(size):
    rng = np.random.default_rng(0)
    a = rng.uniform(size=size)
    b = np.clip(a + 0.2 * rng.normal(size=size), 0, 1)
    last = size[-1] in (1, 3, 4)
    planes = [np.moveaxis(x, -1, 0) if last else x for x in (a, b)]
    planes = [x.reshape(-1, *x.shape[-2:]) for x in planes]
    expected = [
        structural_similarity(
            x, y, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for x, y in zip(*planes, strict=True)
    ]
    assert ssim(b, a) == pytest.approx(np.mean(expected), rel=1e-6)
    assert ssim(a, a) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("shapes", "sentence"),
    [
        (((12, 12), (12, 13)), r"pictures of \(12, 12\) and \(12, 13\) can't be compared"),
        (((3, 10, 20), (3, 10, 20)), r"pictures of \(3, 10, 20\) have 10 x 20"),
        (((40,), (40,)), "SSIM needs pictures with two sides"),
    ],
)
def test_no_ssim(shapes, sentence):
    with pytest.raises(ValueError, match=sentence):
        ssim(*(np.ones(shape) for shape in shapes))


class Drawing:
    """The demo's pipeline, compiled, and a run that draws two small pictures of a seed."""

    def __init__(self) -> None:
        self.pipe = load_pipeline()
        self.pipe.transformer.compile(backend="cachedit", options={"inner_backend": "eager"})
        self.embeddings = embed(shipped_prompts())
        self.drawn: list[int] = []
        self.plain: dict[int, np.ndarray] = {}

    def run(self, seed: int) -> torch.Tensor:
        self.drawn.append(seed)
        return self.run_with_steps(seed, 14)

    def run_with_steps(self, seed: int, num_steps: int) -> torch.Tensor:
        text = self.embeddings[2 * seed : 2 * seed + 2]
        return (draw(self.pipe, text, num_steps=num_steps).clamp(-1, 1) + 1) / 2

    def psnr_of(self, seeds, settings) -> float:
        """By hand, the mean over the seeds against the uncached pictures."""
        dc.configure(self.pipe, enabled=False)
        for seed in seeds:
            if seed not in self.plain:
                self.plain[seed] = as_array(self.run(seed))
        dc.configure(self.pipe, enabled=True, **settings)
        found = []
        for seed in seeds:
            dc.reset(self.pipe)
            found.append(psnr_db(as_array(self.run(seed)), self.plain[seed]))
        return sum(found) / len(found)


def test_a_quality_is_kept_on_pictures_not_seen_before(tmp_path):
    drawing = Drawing()
    found = dc.calibrate(drawing.pipe, drawing.run, target_psnr=30.0, inputs=(0, 1), holdout=(5, 6))
    assert len(drawing.drawn) == found.num_runs <= 40
    assert {0, 1} < set(drawing.drawn) and set(drawing.drawn[-4:]) == {5, 6}
    assert found.is_found and found.best.psnr_db >= 30.0 and found.best.num_inputs == 2
    whole = [point for point in found.tried if point.num_inputs == 2 and point.psnr_db >= 30]
    assert found.best.share == min(point.share for point in whole)
    assert found.holdout.psnr_db > 29 and found.holdout.share < 0.5
    # What it returns is what it measured: by hand on the holdout.
    said = json.loads(json.dumps(dict(found)))
    assert drawing.psnr_of((5, 6), said) == pytest.approx(found.holdout.psnr_db, abs=0.05)
    again = CalibratedConfig.from_json(found.to_json())
    assert (dict(again), again.holdout, again.frontier, str(again)) == (
        dict(found), found.holdout, found.frontier, str(found)
    )  # fmt: skip
    shares = [point.share for point in found.frontier]
    heights = [point.psnr_db for point in found.frontier]
    assert shares == sorted(set(shares)) and heights == sorted(set(heights))
    assert found.best in found.frontier
    assert 0 < found.rounding_noise < 1e-6 and again.rounding_noise == found.rounding_noise
    found.plot(tmp_path / "frontier.png")
    pixels = matplotlib.image.imread(tmp_path / "frontier.png")[..., :3]
    assert pixels.shape[:2] == (450, 700)
    # The star of the best.
    assert np.abs(pixels - np.array([0x1A, 0x7F, 0x37]) / 255).max(-1).min() < 0.02


@pytest.mark.slow
def test_no_preset_mask_is_better_at_the_same_compute():
    """On the pictures that were searched on, and on others, by either predictor."""
    drawing = Drawing()
    mask = dc.steps_mask(total_steps=14, mask_policy="medium")
    budget = sum(mask) / 14
    found = dc.calibrate(
        drawing.pipe, drawing.run, compute_budget=budget, inputs=(0, 1), holdout=(5, 6)
    )
    assert len(drawing.drawn) <= 40 and found.is_reached and found.holdout.share <= budget
    assert str(found).startswith("at most 57% of the block work: reached. On pictures not seen")
    predictors = {"predictor": "replay"}, {"predictor": "taylorseer", "taylorseer_order": 1}
    for policy in ("medium", "fast", "ultra"):
        mask = dc.steps_mask(total_steps=14, mask_policy=policy)
        for predictor in predictors:
            settings = {"rule": "fixed", "compute_mask": mask, "fixed_region": None, **predictor}
            for seeds, point in (((0, 1), found.best), ((5, 6), found.holdout)):
                assert point.psnr_db >= drawing.psnr_of(seeds, settings), (policy, predictor, seeds)


def test_a_goal_out_of_reach_is_admitted():
    drawing = Drawing()
    found = dc.calibrate(drawing.pipe, drawing.run, compute_budget=0.05, inputs=(0,), holdout=(5,))
    assert not found.is_found and not found.is_reached and len(drawing.drawn) <= 40
    assert "NOT reached; this is the best that was found" in str(found)
    assert str(found).endswith("Fewer steps were not tried; run_with_steps= tries them")
    assert found.best.share == min(point.share for point in found.tried)


class Failing:
    """A toy, and a run that draws an image of eight steps, but fails the `fails_at`-th time."""

    def __init__(self, fails_at: int, error: type[BaseException]) -> None:
        options = {"inner_backend": "eager"}
        self.compiled = torch.compile(CrossDiT(1, 4), backend="cachedit", options=options)
        self.num_calls_left, self.error = fails_at, error

    @torch.no_grad()
    def run(self, seed: int) -> torch.Tensor:
        self.num_calls_left -= 1
        if self.num_calls_left == 0:
            raise self.error
        inputs = toy_inputs(0.0, seed=seed, batch=1)
        for i in range(8):
            timestep = torch.full((1,), 90.0 - 10 * i)
            moved = self.compiled(**{**inputs, "timestep": timestep})
            inputs["hidden_states"] = inputs["hidden_states"] - 0.05 * moved
        return inputs["hidden_states"]

    def hits(self) -> list[bool]:
        self.run(77)
        return [step.hit for step in dc.summary(self.compiled).steps[-8:]]


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("fails_at", [1, 2, 4, 7], ids=["first", "uncached", "try", "later_try"])
def test_a_run_that_raises_leaves_what_was_configured(fails_at, error):
    failing = Failing(fails_at, error)
    dc.configure(failing.compiled, rule="even", every=2)
    with pytest.raises(error):
        dc.calibrate(failing.compiled, failing.run, target_psnr=35.0)
    assert failing.num_calls_left == 0
    assert failing.hits() == [False, False, True, False, True, False, True, False]


@pytest.mark.parametrize(
    ("drawn", "sentence"),
    [
        (None, r"returns pictures: .* such as `pipe\(...\).images`; got NoneType"),
        ([None, None], "returns pictures: .*; got NoneType"),
        ("ring.png", "returns pictures: .*; got str"),
        ({"images": torch.zeros(2, 2)}, "returns pictures: .*; got dict"),
        ([], r"returns pictures: .*; got nothing in \[\]"),
        (torch.full((4, 4), torch.nan), "the uncached picture of 0 has values that are no finite"),
    ],
    ids=["None", "list of None", "str", "dict", "empty", "nan"],
)
def test_what_is_no_picture_is_refused_at_the_first_run(drawn, sentence):
    drawing = Failing(0, KeyError)

    def run(seed):
        drawing.run(seed)
        return drawn

    dc.configure(drawing.compiled, rule="even", every=2)
    with pytest.raises(dc.InvalidConfig, match=sentence):
        dc.calibrate(drawing.compiled, run, target_psnr=35.0)
    assert drawing.num_calls_left == -1
    assert drawing.hits() == [False, False, True, False, True, False, True, False]


def test_a_run_that_draws_nothing_anew_is_refused():
    drawing = Failing(0, KeyError)
    with pytest.raises(dc.InvalidConfig, match="it has to draw anew each time"):
        dc.calibrate(drawing.compiled, functools.cache(drawing.run), target_psnr=35.0)


def test_a_run_of_several_prompts_is_known_by_a_tuple_of_them():
    drawing = Failing(0, KeyError)

    def run(seeds):
        return torch.cat([drawing.run(seed) for seed in seeds])

    found = dc.calibrate(
        drawing.compiled, run, compute_budget=0.6, inputs=[(0, 1)], holdout=[(2, 3)]
    )
    assert found.best.num_inputs == found.holdout.num_inputs == 1
    assert found.is_found


@pytest.mark.parametrize(
    ("goal", "bad"),
    [({"target_psnr": 200.0}, math.inf), ({"compute_budget": 0.7}, math.nan)],
    ids=str,
)
def test_settings_that_draw_no_finite_numbers_are_never_the_best(goal, bad):
    """Where any others are within the budget; and the JSON is read by others than Python."""
    drawing = Failing(0, KeyError)

    def run(seed):
        drawn = drawing.run(seed)
        mask = [int(not step.hit) for step in dc.summary(drawing.compiled).steps[-8:]]
        return drawn if mask[5] or sum(mask) < 5 else drawn * bad

    found = dc.calibrate(drawing.compiled, run, **goal)
    assert min(point.psnr_db for point in found.tried) == -100.0
    assert found.best.psnr_db > 0
    json.loads(found.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.mark.parametrize("text", ["", "{}", "[]", "not JSON", '{"best": {"share": 1}}'])
def test_what_is_no_calibration_is_refused(text):
    with pytest.raises(dc.InvalidConfig, match="from_json takes what to_json has written"):
        CalibratedConfig.from_json(text)


def test_a_model_without_blocks_is_left_as_it_was():
    linear = torch.nn.Linear(4, 4)
    model = torch.compile(linear, backend="cachedit", options={"inner_backend": "eager"})
    dc.configure(model, rule="even")
    before = REGISTRY.of_module(linear).overrides
    with pytest.raises(dc.InvalidConfig, match="nothing of this model is cached"):
        dc.calibrate(model, torch.no_grad()(lambda _: model(torch.ones(8, 4))), target_psnr=35.0)
    assert REGISTRY.of_module(linear).overrides == before


def test_fewer_steps_are_a_rival_and_their_win_is_told():
    """Of no more work than what was found needs; by hand on the holdout."""
    drawing = Drawing()
    found = dc.calibrate(
        drawing.pipe, drawing.run, compute_budget=0.5, inputs=(0,), holdout=(5,),
        run_with_steps=drawing.run_with_steps,
    )  # fmt: skip
    fewer = found.fewer_steps
    assert fewer.num_steps == int(found.holdout.share * 14) and fewer.of_steps == 14
    assert fewer.share <= found.holdout.share and found.num_runs <= 40
    dc.configure(drawing.pipe, enabled=False)
    few, all_steps = (as_array(drawing.run_with_steps(5, n)) for n in (fewer.num_steps, 14))
    assert fewer.psnr_db == pytest.approx(psnr_db(few, all_steps), abs=0.01)
    again = CalibratedConfig.from_json(found.to_json())
    assert again.fewer_steps == fewer and str(again) == str(found)
    verdict = "win" if fewer.psnr_db > found.holdout.psnr_db else "don't"
    assert f"Fewer steps {verdict}: {fewer.num_steps} of 14 steps, uncached: " in str(found)


@pytest.mark.parametrize(
    ("psnr", "ssim", "wins"),
    [(41.0, None, True), (39.0, None, False), (41.0, 0.8, False), (39.0, 0.96, True)],
)
def test_who_wins(psnr, ssim, wins):
    point = Point(
        0.5, 40.0, None if ssim is None else 0.9, 1, {"rule": "fixed", "compute_mask": (1, 0)}
    )
    quality = "psnr_db" if ssim is None else "ssim"
    fewer = FewerSteps(7, 14, psnr, ssim)
    found = CalibratedConfig(
        point, point, [point], "a goal", quality,
        is_found=True, is_reached=True, num_runs=4, run_cost=4.0, fewer_steps=fewer,
    )  # fmt: skip
    assert ("Fewer steps win: 7 of 14 steps, uncached: " in str(found)) == wins
    assert ("Fewer steps don't: 7 of 14" in str(found)) != wins


@pytest.mark.parametrize(
    ("share", "num_steps"), [(0.5, 14), (0.499, 13), (1.0, 28), (0.01, 1), (10 / 28, 10)]
)
def test_fewer_steps_cost_no_more(share, num_steps):
    assert num_steps_for(share, 28) == num_steps


class Noisy(torch.nn.Module):
    """A last digit of what it is given is a leading one of what it returns, as may be where layers
    round to few levels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.frac(2**14 * x)


@pytest.mark.parametrize("is_noisy", [False, True])
def test_the_noise_of_a_model_is_measured(is_noisy):
    """And told where a setting is below it. What is computed a second time changes no output."""
    model = gated_dit(4)
    if is_noisy:
        for block in model.blocks:
            block.up = torch.nn.Sequential(block.up, Noisy())
    compiled = compile_toy(model, dry_run=(0.1,))
    for inputs in toy_steps([90.0 - 4 * i for i in range(18)]):
        assert torch.equal(run(compiled, inputs), run(model, inputs))
    (recorded,) = REGISTRY.of_module(model).recordings
    twice = [i for i, step in enumerate(recorded) if step.rerounded is not None]
    assert twice == [1, 9, 17]
    noise = rounding_noise([recorded])
    assert (noise > 1e-4) if is_noisy else (0 < noise < 1e-6)
    settings = {"rule": "error_control", "error_tolerance": 2e-5}
    told = below_noise(settings, noise)
    assert is_noisy == (told is not None)
    if is_noisy:
        assert told.startswith("error_tolerance=2e-05 is below the noise of the model: two comp")
        point = Point(0.5, 40.0, None, 1, settings)
        found = CalibratedConfig(
            point, point, [point], "a goal", "psnr_db", is_found=True, is_reached=True, num_runs=4,
            run_cost=4.0, rounding_noise=noise,
        )  # fmt: skip
        assert f". {told}. Fewer steps" in str(found)
        assert CalibratedConfig.from_json(found.to_json()).rounding_noise == noise


def test_blocks_compiled_one_by_one_compute_once():
    model = SwitchedDiT()
    compile_blocks(model, dry_run=(0.1,))
    watch(model)
    for inputs in toy_steps([60.0, 50.0, 40.0]):
        call(model, inputs)
    (recorded,) = REGISTRY.of_module(model).recordings
    assert len(recorded) == 3 and rounding_noise([recorded]) is None
    assert below_noise({"rule": "error_control", "error_tolerance": 0.01}, None) is None


def test_a_setting_below_the_noise_is_logged():
    failing = Failing(0, MemoryError)
    for block in failing.compiled._orig_mod.blocks:
        block.down = torch.nn.Sequential(block.down, Noisy())
    with logged(logging.WARNING) as lines:
        found = dc.calibrate(failing.compiled, failing.run, target_psnr=99.0)
    option = resolve(found).rule.threshold_option
    is_below = option is not None and found[option] < found.rounding_noise
    assert found.rounding_noise > 0
    assert any("is below the noise of the model" in line for line in lines) == is_below


@pytest.mark.slow
def test_an_ssim_is_kept():
    drawing = Drawing()
    found = dc.calibrate(drawing.pipe, drawing.run, target_ssim=0.95, inputs=(0,), holdout=(5, 6))
    assert found.is_found and found.best.ssim >= 0.95 and len(drawing.drawn) <= 40
    assert found.holdout.ssim > 0.9 and found.holdout.share < 0.7
    assert str(found).startswith("an SSIM of at least 0.95: reached")
    assert all(point.ssim is not None for point in found.tried)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({}, "one of target_psnr, target_ssim and compute_budget"),
        ({"target_psnr": 30.0, "compute_budget": 0.5}, "one of target_psnr, target_ssim and"),
        ({"target_ssim": 30.0}, "target_ssim must be at most 1, got 30"),
        ({"compute_budget": 50}, "compute_budget must be at most 1, got 50"),
        ({"target_psnr": 30.0, "inputs": range(10)}, "10 and 2 of them would take 44 runs at lea"),
        ({"target_psnr": 30.0, "holdout": ()}, "needs one input and one of the holdout or more"),
        ({"target_psnr": 30.0, "inputs": "a ring"}, "inputs must be a sequence, got 'a ring'"),
        ({"target_psnr": 30.0, "inputs": [["a ring", "a star"]]}, "inputs: .*give a tuple of them"),
        ({"target_psnr": 30.0, "holdout": [{"seed": 0}]}, "holdout: .*unhashable type: 'dict'"),
        ({"target_psnr": 30.0, "inputs": (0, 1), "holdout": (2, 1)}, "not seen, and 1 is one of"),
    ],
    ids=str,
)
def test_what_is_asked_for_is_checked(asked, sentence):
    with pytest.raises(dc.InvalidConfig, match=sentence):
        dc.calibrate(torch.nn.Linear(1, 1), lambda _: None, **asked)


@pytest.mark.parametrize("given", [{"run": "draw"}, {"run_with_steps": 14}], ids=str)
def test_what_draws_is_a_function(given):
    """Found before anything is drawn: fewer steps come last, after up to 40 runs."""
    (name,) = given
    with pytest.raises(TypeError, match=f"calibrate: {name} must be a function that draws, got"):
        dc.calibrate(torch.nn.Linear(1, 1), **{"run": pytest.fail, "target_psnr": 30.0, **given})
