"""Pipelines around one transformer share its weights, and nothing that changes as they draw."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    DiffusionPipeline,
    FluxPipeline,
    UniPCMultistepScheduler,
    WanPipeline,
)
from torch import Tensor, nn

from dit_cachegraph.serving.twins import twin_of
from support.tiny_models import TEXT_DIM, build_flux, build_wan, finish

pytestmark = pytest.mark.e2e
NUM_FRAMES = 9


def build_vae() -> nn.Module:
    vae = AutoencoderKLWan(
        base_dim=3, z_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 8,
        latents_std=[1.0] * 8, temperal_downsample=[False, True, True],
    )  # fmt: skip
    return finish(vae, seed=3)


@pytest.fixture(scope="module")
def pipe() -> DiffusionPipeline:
    """Wan 2.2: two transformers, of which the second goes on below a share of the noise."""
    other = build_wan(2)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1.3)
    pipe = WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=build_vae(),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        transformer=build_wan(2),
        transformer_2=other,
        boundary_ratio=0.8,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: DiffusionPipeline, seed: int = 0, output_type: str = "latent") -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return pipe(
        prompt_embeds=torch.randn(1, 6, TEXT_DIM, generator=generator),
        negative_prompt_embeds=torch.randn(1, 6, TEXT_DIM, generator=generator),
        height=16,
        width=16,
        num_frames=NUM_FRAMES,
        num_inference_steps=4,
        generator=generator,
        output_type=output_type,
    ).frames


def storages_of(pipe: DiffusionPipeline) -> set[int]:
    modules = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    return {t.data_ptr() for m in modules for t in m.parameters()}


def test_a_twin_draws_the_same_by_the_same_weights(pipe):
    twin = twin_of(pipe)
    assert type(twin) is WanPipeline and twin.config.boundary_ratio == 0.8
    assert twin.transformer is pipe.transformer and twin.transformer_2 is pipe.transformer_2
    assert twin.scheduler is not pipe.scheduler and twin.vae is not pipe.vae
    assert storages_of(twin) == storages_of(pipe)
    assert torch.equal(draw(twin), draw(pipe))


class FrameByFrame:
    """Lets each of two threads decode one frame in turn."""

    def __init__(self) -> None:
        self._both = threading.Barrier(2, timeout=60)

    def __call__(self, *_: object) -> None:
        self._both.wait()


def test_twins_decode_at_once(pipe):
    """The VAE keeps what the frames before have left."""
    alone = [draw(pipe, seed, "pt") for seed in (1, 2)]
    twins = [twin_of(pipe) for _ in alone]
    in_turn = FrameByFrame()
    for twin in twins:
        twin.vae.decoder.register_forward_pre_hook(in_turn)
    with ThreadPoolExecutor(2) as threads:
        clips = list(threads.map(lambda twin, seed: draw(twin, seed, "pt"), twins, (1, 2)))
    for clip, expected in zip(clips, alone, strict=True):
        assert torch.equal(clip, expected)
    assert not torch.equal(*alone)


def test_what_torch_compile_returned_is_shared():
    encoders = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    pipe = FluxPipeline(scheduler, vae=None, transformer=build_flux(1, 2), **encoders)
    pipe.transformer = torch.compile(pipe.transformer, backend="cachedit")
    assert twin_of(pipe).transformer is pipe.transformer
