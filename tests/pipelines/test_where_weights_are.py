"""Weights that move: `pipe.to`, offloading, types and memory formats."""

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from diffusers import DiffusionPipeline, FluxPipeline

import dit_cachegraph as dc
from support.drawing import FLUX, HITS, SD3, WAN, at_step, build, cached, draw
from support.running import relative_error
from support.tiny_models import NUM_CHANNELS
from support.tiny_pipelines import TinyPipeline

pytestmark = pytest.mark.e2e


def test_another_type_is_another_model():
    """The same as a pipeline that was of that type from the start, and back again."""
    pipe = cached(build())
    before = draw(pipe)
    half = draw(pipe.to(torch.bfloat16), **in_half())
    back = draw(pipe.to(torch.float32))
    assert before.hits == half.hits == back.hits == HITS
    alone = draw(cached(build().to(torch.bfloat16)), **in_half())
    assert torch.equal(half.latents, alone.latents)
    assert half.latents.dtype == torch.bfloat16
    # Rounding to bfloat16 has changed the weights for good.
    assert 0 < relative_error(back.latents, before.latents) < 0.1


def in_half() -> dict[str, object]:
    arguments = FLUX.arguments(1)
    names = ("prompt_embeds", "pooled_prompt_embeds")
    return {name: arguments[name].to(torch.bfloat16) for name in names}


def test_weights_that_move_in_the_middle_of_an_image_cost_no_hit():
    pipe = cached(build())
    expected = draw(pipe)

    def move(pipe: DiffusionPipeline) -> None:
        before = [p.data_ptr() for p in pipe.transformer.parameters()]
        pipe.transformer._apply(torch.clone)
        assert before != [p.data_ptr() for p in pipe.transformer.parameters()]

    moved = draw(pipe, callback_on_step_end=at_step(4, move))
    assert moved.hits == HITS
    assert torch.equal(moved.latents, expected.latents)


@pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated")
def test_from_pretrained_in_bfloat16(tmp_path):
    build().save_pretrained(tmp_path)
    absent = dict.fromkeys(name for name, part in build().components.items() if part is None)
    pipe = FluxPipeline.from_pretrained(tmp_path, torch_dtype=torch.bfloat16, **absent)
    pipe.set_progress_bar_config(disable=True)
    uncached = pipe(**{**FLUX.arguments(1), **in_half()})[0]
    drawn = draw(cached(pipe), **in_half())
    assert drawn.hits == HITS
    assert drawn.latents.dtype == torch.bfloat16
    dc.configure(pipe, residual_diff_threshold=0.0)
    assert torch.equal(draw(pipe, **in_half()).latents, uncached)


def with_model_hook(pipe: DiffusionPipeline) -> None:
    """What `enable_model_cpu_offload` puts on each model."""
    cpu_offload_with_hook(pipe.transformer, "cpu")


@pytest.mark.parametrize("is_hooked_first", [True, False], ids=["hook, compile", "compile, hook"])
def test_hook_of_model_offload(is_hooked_first):
    pipe = build()
    if is_hooked_first:
        with_model_hook(pipe)
    cached(pipe)
    if not is_hooked_first:
        with_model_hook(pipe)
    drawn = draw(pipe)
    assert drawn.hits == HITS
    assert draw(pipe).hits == HITS
    assert dc.summary(pipe).refusals == ()
    assert torch.equal(drawn.latents, draw(cached(build())).latents)


@pytest.mark.slow
def test_offloading_module_by_module_is_refused():
    """What `enable_sequential_cpu_offload` does: its hooks break the graph at each module."""
    pipe = build()
    expected = pipe(**FLUX.arguments(1))[0]
    cpu_offload(pipe.transformer, torch.device("cpu"), offload_buffers=True)
    cached(pipe)
    with pytest.warns(dc.NotCachedWarning):
        drawn = draw(pipe, num_inference_steps=2)
    assert drawn.hits == ""
    report = dc.summary(pipe)
    (note,) = report.notes
    assert note.startswith("FluxTransformer2DModel is offloaded module by module (")
    assert "call `pipe.enable_model_cpu_offload()` instead" in note
    pipe = build()
    assert torch.equal(drawn.latents, pipe(**{**FLUX.arguments(1), "num_inference_steps": 2})[0])
    assert not torch.equal(drawn.latents, expected)


@pytest.mark.gpu
def test_model_offload_on_a_gpu():
    pipe = build()
    pipe.enable_model_cpu_offload()
    cached(pipe)
    images = [draw(pipe), draw(pipe)]
    assert [drawn.hits for drawn in images] == [HITS] * 2
    assert torch.equal(images[0].latents, images[1].latents)
    on_gpu = draw(cached(build().to("cuda")))
    assert relative_error(images[0].latents, on_gpu.latents) < 1e-5


@pytest.mark.gpu
def test_a_pipeline_moved_between_two_images():
    pipe = cached(build())
    on_cpu = draw(pipe)
    on_gpu = draw(pipe.to("cuda"))
    back = draw(pipe.to("cpu"))
    assert on_cpu.hits == on_gpu.hits == back.hits == HITS
    assert torch.equal(back.latents, on_cpu.latents)
    assert relative_error(on_gpu.latents.cpu(), on_cpu.latents) < 1e-2


@pytest.mark.parametrize(
    ("tiny", "memory_format"),
    [
        pytest.param(SD3, torch.channels_last, marks=pytest.mark.slow),
        (WAN, torch.channels_last_3d),
    ],
    ids=["sd3", "wan"],
)
def test_channels_last(tiny: TinyPipeline, memory_format: torch.memory_format):
    """Weights of the patch embedding and the latents."""
    uncached, pipe = build(tiny), build(tiny)
    for each in (uncached, pipe):
        each.transformer.to(memory_format=memory_format)
    latents = latents_of(tiny).to(memory_format=memory_format)
    drawn = draw(cached(pipe), tiny=tiny, latents=latents)
    assert drawn.hits.count("H") == HITS.count("H") * tiny.num_branches
    dc.configure(pipe, residual_diff_threshold=0.0)
    computed = draw(pipe, tiny=tiny, latents=latents)
    expected = uncached(**{**tiny.arguments(1), "latents": latents})[0]
    assert relative_error(computed.latents, expected) < 1e-5
    assert relative_error(drawn.latents, expected) > 1e-3


def latents_of(tiny: TinyPipeline) -> torch.Tensor:
    """Noise of the size that the pipeline would draw."""
    frames = [2] if tiny is WAN else []
    return torch.randn(1, NUM_CHANNELS, *frames, 8, 8, generator=torch.Generator().manual_seed(3))
