"""The oracle against results worked out by hand, and against the plain tiny models."""

import inspect
import math
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn

from oracles.dbcache import EagerOracle, StepResult
from support.tiny_models import TINY_MODELS, Inputs, TinyModel, trajectory

STREAMS = {"blocks": ("encoder_hidden_states", "hidden_states")}


class ToyBlock(nn.Module):
    """h -> gain * h + add * t, and the text e -> e + 10 * add * t."""

    def __init__(self, gain: float, add: float) -> None:
        super().__init__()
        self.gain, self.add = gain, add

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, t: Tensor
    ) -> tuple[Tensor, Tensor]:
        text = encoder_hidden_states + 10 * self.add * t
        return text, self.gain * hidden_states + self.add * t


class ToyTrunk(nn.Module):
    """With gains of 1 the probe is Fn * t, so a diff is |t - t_prev| / |t_prev|."""

    def __init__(self, *blocks: tuple[float, float]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ToyBlock(gain, add) for gain, add in blocks)

    def forward(self, latents: Tensor, text: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        for block in self.blocks:
            text, latents = block(latents, encoder_hidden_states=text, t=t)
        return latents, text


def make_toy(*blocks: tuple[float, float], **settings: object) -> EagerOracle:
    trunk = ToyTrunk(*(blocks or ((1.0, 1.0),) * 4))
    defaults = {"Fn_compute_blocks": 1, "max_warmup_steps": 0, "residual_diff_threshold": 0.1}
    return EagerOracle(trunk, ("blocks",), STREAMS, **{**defaults, **settings})


def step_toy(oracle: EagerOracle, *times: float, latent: float = 0.0) -> StepResult:
    """One call with a batch of one sample per time, two tokens each."""
    t = torch.tensor(times).reshape(-1, 1, 1)
    shape = (len(times), 2, 3)
    return oracle.step(latents=torch.full(shape, latent), text=torch.zeros(shape), t=t)


def hits(oracle: EagerOracle, times: Iterable[float]) -> str:
    return "".join("h" if step_toy(oracle, time).hit else "c" for time in times)


def test_residual_and_diff_by_hand() -> None:
    oracle = make_toy()
    assert step_toy(oracle, 1.0).reason == "no_residual"
    hit = step_toy(oracle, 1.0625, latent=5.0)
    assert (hit.hit, hit.diff, hit.step) == (True, 0.0625, 1)
    # 5 + one fresh block of 1.0625, and three kept ones of 1.
    assert torch.equal(hit.output, torch.full((1, 2, 3), 9.0625))
    missed = step_toy(oracle, 1.125)
    # 0.125 and not 0.0625 away: a hit does not renew the probe.
    assert (missed.hit, missed.diff) == (False, 0.125)
    assert torch.equal(missed.output, torch.full((1, 2, 3), 4.5))
    assert step_toy(oracle, 1.125).hit


def test_threshold_is_strict() -> None:
    assert hits(make_toy(residual_diff_threshold=0.125), [1.0, 1.125]) == "cc"


def test_last_blocks_run_on_the_approximated_stream() -> None:
    oracle = make_toy((1.0, 1.0), (1.0, 2.0), (1.0, 4.0), (3.0, 1.0), Bn_compute_blocks=1)
    assert step_toy(oracle, 1.0).output[0, 0, 0] == 3 * 7 + 1
    hit = step_toy(oracle, 1.0625, latent=2.0)
    assert hit.hit
    assert hit.output[0, 0, 0] == 3 * (2 + 1.0625 + 2 + 4) + 1.0625


def test_text_stream_is_approximated_too() -> None:
    seen: list[Tensor] = []
    oracle = make_toy(Bn_compute_blocks=1)
    last = oracle.model.get_submodule("blocks.3.block")
    last.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["encoder_hidden_states"]), with_kwargs=True
    )
    step_toy(oracle, 1.0)
    assert step_toy(oracle, 1.0625).hit
    # One fresh block and two of the kept step.
    assert [text[0, 0, 0].item() for text in seen] == [30.0, 10 * (1.0625 + 2)]


@pytest.mark.parametrize(("rule", "diff"), [("max", 0.25), ("mean", 0.0625)])
def test_batch_rule(rule: str, diff: float) -> None:
    oracle = make_toy(batch_rule=rule, residual_diff_threshold=0.2)
    step_toy(oracle, 1.0, 3.0)
    result = step_toy(oracle, 1.25, 3.0)
    assert result.diff == diff
    assert result.hit == (rule == "mean")


def test_warmup_interval() -> None:
    assert hits(make_toy(max_warmup_steps=8, warmup_interval=3), [1.0] * 10) == "chhchhchhh"
    assert hits(make_toy(max_warmup_steps=3), [1.0] * 6) == "ccchhh"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"max_continuous_cached_steps": 1}, "chchch"),
        ({"max_continuous_cached_steps": 2}, "chhchh"),
        ({"max_continuous_cached_steps": 0}, "cccccc"),
        ({"max_cached_steps": 2}, "chhccc"),
        ({"max_cached_steps": 0}, "cccccc"),
        ({"residual_diff_threshold": 0.0}, "cccccc"),
        ({"enabled": False}, "cccccc"),
        ({"Fn_compute_blocks": 2, "Bn_compute_blocks": 2}, "cccccc"),
        ({"num_inference_steps": 3}, "chhchh"),
    ],
)
def test_limits(settings: dict[str, object], expected: str) -> None:
    assert hits(make_toy(**settings), [1.0] * 6) == expected


@pytest.mark.parametrize(
    ("policy", "mask", "expected"),
    [
        # A static mask ignores the diff of 1 at the third step; a dynamic one does not.
        ("static", [1, 0, 0, 1, 0], "chhchc"),
        ("dynamic", [1, 0, 0, 1, 0], "chcchc"),
        ("static", [0, 0, 0], "chhccc"),
    ],
)
def test_mask(policy: str, mask: list[int], expected: str) -> None:
    oracle = make_toy(steps_computation_mask=mask, steps_computation_policy=policy)
    assert hits(oracle, [1.0, 1.0, 2.0, 2.0, 2.0, 2.0]) == expected


def test_mask_shortens_warmup() -> None:
    oracle = make_toy(steps_computation_mask=[1, 1, 0, 0, 1], max_warmup_steps=4)
    results = [step_toy(oracle, 1.0) for _ in range(5)]
    assert [r.reason for r in results] == ["warmup", "warmup", "diff", "diff", "mask"]
    assert [r.hit for r in results] == [False, False, True, True, False]


def test_accumulated_is_one_way_and_counts_misses() -> None:
    oracle = make_toy(max_accumulated_residual_diff_threshold=0.5)
    # Recorded: 0.0625 (hit), 0.5 (computed), and from then on nothing more until a new image.
    assert hits(oracle, [1.0, 1.0625, 1.5, 1.5, 1.5]) == "chccc"
    assert step_toy(oracle, 1.5).reason == "max_accumulated"
    oracle.new_image()
    assert hits(oracle, [1.5, 1.5]) == "ch"


def test_threshold_of_one_hits_unrecorded_unless_not_finite() -> None:
    oracle = make_toy(residual_diff_threshold=1.0, max_accumulated_residual_diff_threshold=0.5)
    step_toy(oracle, 1.0)
    far = step_toy(oracle, 9.0)
    assert (far.hit, far.diff, far.probe_diff) == (True, None, 8.0)
    assert step_toy(oracle, 9.0).hit
    broken = step_toy(oracle, math.nan)
    assert (broken.hit, broken.reason) == (False, "not_finite")
    # The broken step was computed, so it is what the next one is compared with.
    assert not step_toy(oracle, 1.0).hit
    assert step_toy(oracle, 1.0).hit


@pytest.mark.parametrize("first", [0.0, math.inf])
def test_unusable_previous_probe_computes(first: float) -> None:
    oracle = make_toy()
    step_toy(oracle, first)
    result = step_toy(oracle, 1.0)
    assert (result.hit, result.diff) == (False, None)


def test_other_shape_or_region_computes() -> None:
    oracle = make_toy()
    step_toy(oracle, 1.0)
    assert step_toy(oracle, 1.0, 1.0).reason == "no_residual"
    assert step_toy(oracle, 1.0, 1.0).hit
    oracle.configure(Bn_compute_blocks=1)
    assert step_toy(oracle, 1.0, 1.0).reason == "no_residual"
    assert step_toy(oracle, 1.0, 1.0).hit
    with pytest.raises(ValueError, match="more than the 4 blocks"):
        oracle.configure(Bn_compute_blocks=4)
    with pytest.raises(TypeError):
        oracle.configure(no_such_setting=1)


def first_inputs(tiny: TinyModel, model: nn.Module) -> Inputs:
    return tiny.make_inputs(model, batch=2, size=4, text_tokens=5, seed=1)


each_tiny = pytest.mark.parametrize("tiny", TINY_MODELS, ids=lambda tiny: tiny.name)


@pytest.mark.e2e
@each_tiny
@torch.no_grad()
def test_threshold_zero_is_the_plain_model(tiny: TinyModel) -> None:
    model = tiny.build(4)
    settings = {"residual_diff_threshold": 0.0, "max_warmup_steps": 0}
    oracle = EagerOracle(model, tiny.block_lists, tiny.stream_outputs, **settings)
    inputs = first_inputs(tiny, model)
    previous = math.inf
    for kwargs in trajectory(tiny, inputs, num_steps=4):
        result = oracle.step(**kwargs)
        assert not result.hit
        assert result.diff is None
        assert torch.equal(result.output, model(**kwargs)[0])
        others = inputs.keys() - {"hidden_states", "timestep"}
        assert all(kwargs[name] is inputs[name] for name in others)
        timestep = kwargs["timestep"]
        assert isinstance(timestep, Tensor)
        assert timestep[0] < previous
        previous = timestep[0].item()


@pytest.mark.e2e
@each_tiny
def test_trajectory_mixes_hits_and_computes(tiny: TinyModel) -> None:
    model = tiny.build(6)
    inputs = first_inputs(tiny, model)
    for threshold in (0.1, 0.2, 0.3):
        oracle = EagerOracle(
            model,
            tiny.block_lists,
            tiny.stream_outputs,
            Bn_compute_blocks=1,
            max_warmup_steps=2,
            residual_diff_threshold=threshold,
        )
        results = [oracle.step(**kwargs) for kwargs in trajectory(tiny, inputs, num_steps=16)]
        assert 3 <= sum(result.hit for result in results) <= 13
        assert all(result.output.isfinite().all() for result in results)


@pytest.mark.e2e
@each_tiny
@torch.no_grad()
def test_repeated_step_hits_with_the_computed_output(tiny: TinyModel) -> None:
    model = tiny.build(5)
    inputs = first_inputs(tiny, model)
    expected = model(**inputs)[0]
    for num_last in (0, 1):
        settings = {"max_warmup_steps": 1, "Fn_compute_blocks": 1, "Bn_compute_blocks": num_last}
        oracle = EagerOracle(model, tiny.block_lists, tiny.stream_outputs, **settings)
        results = [oracle.step(**inputs) for _ in range(3)]
        assert [result.hit for result in results] == [False, True, True]
        torch.testing.assert_close(results[2].output, expected, atol=1e-5, rtol=1e-5)


def passing(names: tuple[str, ...]) -> Callable[..., object]:
    """A forward hook that replaces a block's results by its arguments."""

    def hook(
        block: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], _: object
    ) -> object:
        bound = inspect.signature(block.forward).bind(*args, **kwargs).arguments
        kept = tuple(bound[name] for name in names)
        return kept if len(kept) > 1 else kept[0]

    return hook


@pytest.mark.e2e
@each_tiny
@torch.no_grad()
def test_every_block_of_the_tiny_models_matters(tiny: TinyModel) -> None:
    model = tiny.build(6)
    inputs = first_inputs(tiny, model)
    expected = model(**inputs)[0]
    for list_name in tiny.block_lists:
        for block in model.get_submodule(list_name).children():
            hook = passing(tiny.stream_outputs[list_name])
            handle = block.register_forward_hook(hook, with_kwargs=True)
            without = model(**inputs)[0]
            handle.remove()
            assert (without - expected).norm() / expected.norm() > 0.01
