"""Models of diffusers whose blocks are compiled one by one, against the oracle and against the same
model compiled whole."""

import copy

import pytest
import torch
from torch import Tensor, nn

import dit_cachegraph as dc
from links.linked import SwitchedDiT, call, compile_blocks
from oracles.dbcache import EagerOracle
from support.running import compile_cached, relative_error, run_all
from support.tiny_models import FLUX, WAN, TinyModel, trajectory
from support.toy_dits import DIM, NUM_TOKENS, GatedBlock, toy_inputs
from support.toy_runs import toy_steps

pytestmark = pytest.mark.e2e

DEPTH, NUM_STEPS = 6, 12
SETTINGS = {"Fn_compute_blocks": 1, "max_warmup_steps": 2, "residual_diff_threshold": 0.2}
MODELS = pytest.mark.parametrize("tiny", [FLUX, WAN], ids=lambda tiny: tiny.name)


def linked_model(
    tiny: TinyModel, inner_backend: str = "eager", **settings: object
) -> tuple[nn.Module, nn.Module]:
    """A model compiled block by block, which has been watched, and one like it that isn't."""
    model = tiny.build(DEPTH)
    plain = copy.deepcopy(model)
    options = {"inner_backend": inner_backend, **settings}
    model.compile_repeated_blocks(backend="cachedit", options=options)
    run_plain(model, steps_of(tiny, model, seed=9)[:4])
    assert "not cached yet" in dc.summary(model).standing
    return model, plain


def steps_of(
    tiny: TinyModel, model: nn.Module, seed: int = 0, batch: int = 2
) -> list[dict[str, object]]:
    inputs = tiny.make_inputs(model, batch=batch, size=3, text_tokens=5, seed=seed)
    return list(trajectory(tiny, inputs, NUM_STEPS, seed=seed))


@torch.no_grad()
def run_plain(model: nn.Module, steps: list[dict[str, object]]) -> list[torch.Tensor]:
    return [model(**kwargs)[0] for kwargs in steps]


@MODELS
def test_exact_at_threshold_0(tiny):
    model, plain = linked_model(tiny, **{**SETTINGS, "residual_diff_threshold": 0.0})
    steps = steps_of(tiny, model)
    for ran, expected in zip(run_all(model, steps), run_plain(plain, steps), strict=True):
        assert not ran.hit
        assert torch.equal(ran.output, expected)
    dc.check(model)


@MODELS
def test_one_picture_alone_is_reused(tiny):
    """Dynamo guards the stride of its batch, which FLUX's blocks leave as they find it."""
    model = tiny.build(DEPTH)
    model.compile_repeated_blocks(backend="cachedit", options={"inner_backend": "eager"})
    dc.configure(model, **{**SETTINGS, "residual_diff_threshold": 1.0})
    run_plain(model, steps_of(tiny, model, seed=9, batch=1)[:4])
    ran = run_all(model, steps_of(tiny, model, batch=1)[:5])
    assert [step.hit for step in ran] == [False, False, True, True, True]


@MODELS
@pytest.mark.parametrize(
    "more",
    [{}, {"Bn_compute_blocks": 1}, {"Fn_compute_blocks": 3}, {"max_continuous_cached_steps": 1}],
    ids=str,
)
def test_every_step_equals_the_oracle(tiny, more):
    settings = {**SETTINGS, **more}
    model, plain = linked_model(tiny, **settings)
    steps = steps_of(tiny, model)
    ran = run_all(model, steps)
    oracle = EagerOracle(plain, tiny.block_lists, tiny.stream_outputs, **settings)
    for i, (step, kwargs) in enumerate(zip(ran, steps, strict=True)):
        with torch.no_grad():
            expected = oracle.step(**kwargs)
        assert step.hit == expected.hit, f"step {i}: {step.reason}, oracle: {expected.reason}"
        assert relative_error(step.output, expected.output) < 1e-5, f"step {i}"
    assert 3 <= sum(step.hit for step in ran) < NUM_STEPS - 2


@MODELS
@pytest.mark.parametrize(
    "settings",
    [
        {"preset": "balanced", "error_tolerance": 0.3},
        pytest.param({"rule": "dbprune", "residual_diff_threshold": 0.2}, marks=pytest.mark.slow),
        {**SETTINGS, "predictor": "taylorseer", "taylorseer_order": 1},
    ],
    ids=lambda settings: str(next(iter(settings.values()))),
)
def test_every_step_equals_the_model_compiled_whole(tiny, settings):
    model, plain = linked_model(tiny, **settings)
    steps = steps_of(tiny, model)
    whole = run_all(compile_cached(plain, **settings), steps)
    for own, other in zip(run_all(model, steps), whole, strict=True):
        assert own.reason.split()[0] == other.reason.split()[0]
        assert own.hit == other.hit
        assert relative_error(own.output, other.output) < 1e-4
    assert any(step.hit for step in whole)


@MODELS
@pytest.mark.slow
@pytest.mark.parametrize("order", [None, 1])
def test_the_same_under_inductor(tiny, order):
    settings = {**SETTINGS}
    if order is not None:
        settings |= {"predictor": "taylorseer", "taylorseer_order": order}
    model, plain = linked_model(tiny, "inductor", **settings)
    steps = steps_of(tiny, model)
    whole = run_all(compile_cached(plain, **settings), steps)
    for own, other in zip(run_all(model, steps), whole, strict=True):
        assert own.hit == other.hit
        assert relative_error(own.output, other.output) < 1e-4
    assert any(step.hit for step in whole)


@MODELS
def test_interleaved_requests_are_apart(tiny):
    model, plain = linked_model(tiny, **SETTINGS)
    images = [steps_of(tiny, model, seed) for seed in (0, 1)]
    oracles = [
        EagerOracle(plain, tiny.block_lists, tiny.stream_outputs, **SETTINGS) for _ in images
    ]
    num_hits = 0
    for step in zip(*images, strict=True):
        for kwargs, oracle in zip(step, oracles, strict=True):
            (ran,) = run_all(model, [kwargs])
            with torch.no_grad():
                expected = oracle.step(**kwargs)
            assert ran.hit == expected.hit
            assert relative_error(ran.output, expected.output) < 1e-5
            num_hits += ran.hit
    assert num_hits > 4


@MODELS
def test_a_hit_runs_the_first_block_alone(tiny):
    model, _ = linked_model(tiny, **{**SETTINGS, "residual_diff_threshold": 1.0})
    steps = steps_of(tiny, model)
    report = dc.summary(model)
    run_all(model, steps)
    report = dc.summary(model)
    assert report.num_hits == NUM_STEPS - 2
    assert report.num_blocks_run == 2 * DEPTH + (NUM_STEPS - 2)
    assert report.is_cached
    (graph,) = report.graphs
    assert graph.is_linked and graph.num_blocks == DEPTH
    assert [blocks.name for blocks in graph.block_lists] == list(tiny.block_lists)
    assert 0.5 < graph.share_of_weights < 1
    assert "`torch.compile` of the whole model saves more" in str(report)


def test_controls_after_the_double_blocks_leave_the_single_ones_as_the_trunk():
    """ControlNet's residuals are added to the image stream; the text is handed on as it is."""
    model = FLUX.build(DEPTH)
    plain = copy.deepcopy(model)
    model.compile_repeated_blocks(
        backend="cachedit", options={"inner_backend": "eager", **SETTINGS, "max_warmup_steps": 0}
    )
    controls = [0.1 * torch.randn(2, 9, 32)] * 2
    steps = [{**kwargs, "controlnet_block_samples": controls} for kwargs in steps_of(FLUX, model)]
    for ran, expected in zip(run_plain(model, steps[:5]), run_plain(plain, steps), strict=False):
        torch.testing.assert_close(ran, expected)
    run_plain(model, steps[5:])
    report = dc.summary(model)
    assert [blocks.name for blocks in report.graphs[0].block_lists] == ["single_transformer_blocks"]
    assert report.num_hits > 0


class FurtherDiT(SwitchedDiT):
    """It is given more than latents, a timestep and a text, as LTX-2 and Wan 2.2 5B are: a number
    with which nothing is done, a timestep of each token, a list of pictures as Z-Image, or sound,
    which has a stream of its own, and positions, of more dimensions than the latents have."""

    def forward(
        self,
        hidden_states: Tensor | list[Tensor],
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        sigma: Tensor | None = None,
        sound: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        if isinstance(hidden_states, list):
            hidden_states = torch.stack(hidden_states)
        h, temb = self.proj_in(hidden_states), self.embed(timestep.reshape(len(timestep), -1)[:, 0])
        if sound is None:
            return (self.proj_out(self.trunk(h, temb, encoder_hidden_states)),)
        for block in self.blocks:
            h, sound = block(h, temb, encoder_hidden_states, sound)
        return self.proj_out(h), self.proj_out(sound)


class SoundBlock(GatedBlock):
    def forward(
        self, h: Tensor, temb: Tensor, e: Tensor | None = None, sound: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        h = super().forward(h, temb, e)
        return h if sound is None else (h, super().forward(sound, temb, h))


def a_noise_level(level: float, is_text: bool) -> dict[str, Tensor]:
    return {"sigma": torch.full((2,), level / 1000)}


def a_scale_of_each_pass(level: float, is_text: bool) -> dict[str, Tensor]:
    return {"sigma": torch.full((2,), 3.0 if is_text else 1.0)}


def a_timestep_of_each_token(level: float, is_text: bool) -> dict[str, Tensor]:
    return {"timestep": torch.full((2, NUM_TOKENS), level)}


def a_list_of_pictures(level: float, is_text: bool) -> dict[str, object]:
    noise = torch.randn(2, NUM_TOKENS, DIM, generator=torch.Generator().manual_seed(3))
    return {"hidden_states": list(noise * (1 + level / 100))}


def sound_and_positions(level: float, is_text: bool) -> dict[str, Tensor]:
    noise = torch.randn(2, 5, DIM, generator=torch.Generator().manual_seed(3))
    return {"sound": noise * (1 + level / 100), "positions": torch.ones(2, 1, 5, 2)}


@pytest.mark.parametrize(
    "further",
    [
        a_noise_level,
        a_scale_of_each_pass,
        a_timestep_of_each_token,
        a_list_of_pictures,
        sound_and_positions,
    ],
)
def test_what_differs_at_every_step_is_no_conditioning(further):
    """Else each step would be a request of its own, and nothing would ever be reused."""
    torch.manual_seed(0)
    model = FurtherDiT()
    model.blocks = nn.ModuleList(SoundBlock() for _ in range(4)).eval().requires_grad_(False)
    compile_blocks(model, residual_diff_threshold=1.0)
    other_text = toy_inputs(0.0, seed=5)["encoder_hidden_states"]
    for start in (80.0, 79.0):
        for step in toy_steps([start - 10 * i for i in range(6)]):
            for is_text in (True, False):
                text = step["encoder_hidden_states"] if is_text else other_text
                more = further(float(step["timestep"][0]), is_text)
                call(model, {**step, "encoder_hidden_states": text, **more})
    last = dc.summary(model).steps[-12:]
    assert len({step.request for step in last}) == 2
    assert [step.hit for step in last] == [False] * 2 + [True] * 10
