"""How a pipeline is called: autocast, inference mode, callbacks, interruptions, gradients."""

from contextlib import AbstractContextManager

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

import dit_cachegraph as dc
from support.drawing import FLUX, HITS, SETTINGS, at_step, build, cached, draw
from support.running import relative_error
from support.tiny_models import FLUX as FLUX_MODEL
from support.tiny_models import build_flux, trajectory

pytestmark = pytest.mark.e2e


def uncached(**arguments: object) -> Tensor:
    return build()(**{**FLUX.arguments(1), **arguments})[0]


@pytest.mark.parametrize(
    "context",
    [
        lambda: torch.autocast("cpu", torch.bfloat16),
        pytest.param(torch.inference_mode, marks=pytest.mark.slow),
    ],
    ids=["autocast", "inference_mode"],
)
def test_under_a_context(context: type[AbstractContextManager[None]]):
    pipe = cached(build())
    outside = draw(pipe)
    with context():
        inside = draw(pipe)
        dc.configure(pipe, residual_diff_threshold=0.0)
        computed = draw(pipe)
        expected = uncached()
    assert outside.hits == inside.hits == HITS
    assert "H" not in computed.hits
    assert relative_error(computed.latents, expected) < 1e-5
    dc.configure(pipe, residual_diff_threshold=1.0)
    assert torch.equal(draw(pipe).latents, outside.latents)


def test_all_in_inference_mode():
    """Weights, compilation, and calls."""
    with torch.inference_mode():
        pipe = cached(build())
        drawn = draw(pipe)
    assert drawn.hits == HITS
    assert torch.equal(drawn.latents, draw(cached(build())).latents)


def test_a_callback_that_changes_the_latents():
    def halve(pipe: DiffusionPipeline, i: int, t: Tensor, tensors: dict[str, Tensor]):
        return {"latents": tensors["latents"] * 0.97}

    pipe = cached(build())
    assert draw(pipe, callback_on_step_end=halve).hits == HITS
    dc.configure(pipe, residual_diff_threshold=0.0)
    computed = draw(pipe, callback_on_step_end=halve)
    assert relative_error(computed.latents, uncached(callback_on_step_end=halve)) < 1e-5
    assert relative_error(computed.latents, uncached()) > 1e-2


def test_a_callback_that_changes_the_prompt():
    """What was kept under the old prompt is not replayed under the new one."""
    other = FLUX.arguments(2)["prompt_embeds"]

    def swap(pipe: DiffusionPipeline, i: int, t: Tensor, tensors: dict[str, Tensor]):
        return {"prompt_embeds": other} if i == 4 else {}

    arguments = {
        "callback_on_step_end": swap,
        "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"],
    }
    pipe = cached(build(), max_continuous_cached_steps=-1)
    drawn = draw(pipe, **arguments)
    assert drawn.hits == "..HHH..HHH"
    dc.configure(pipe, residual_diff_threshold=0.0)
    assert relative_error(draw(pipe, **arguments).latents, uncached(**arguments)) < 1e-5


def interrupt(pipe: DiffusionPipeline) -> None:
    pipe._interrupt = True


def test_the_image_after_an_interrupted_one_is_drawn_as_if_alone():
    """Under the very same tensors, where nothing but timestep and latents tells them apart."""
    pipe = cached(build())
    arguments = FLUX.arguments(1)
    for last in (0, 1, 5):
        noise = torch.Generator().manual_seed(last)
        stopped = draw(
            pipe,
            **{**arguments, "generator": noise},
            callback_on_step_end=at_step(last, interrupt),
        )
        assert stopped.hits == HITS[: last + 1]
        after = draw(pipe, **{**arguments, "generator": torch.Generator().manual_seed(9)})
        assert after.hits == HITS
    alone = draw(cached(build()), **{**arguments, "generator": torch.Generator().manual_seed(9)})
    assert relative_error(after.latents, alone.latents) < 1e-6


def gradients_of(model: torch.nn.Module, inputs: dict[str, object]) -> list[Tensor]:
    weights = list(model.transformer_blocks[0].parameters())
    for weight in weights:
        weight.requires_grad_(True)
    return list(torch.autograd.grad(model(**inputs)[0].square().sum(), weights))


def test_gradients_are_those_of_the_uncached_model():
    model = build_flux(1, 2)
    inputs = FLUX_MODEL.make_inputs(model, batch=1, size=3, text_tokens=4, seed=0)
    expected = gradients_of(model, inputs)
    model.compile(backend="cachedit", options={**SETTINGS, "max_warmup_steps": 0})
    with pytest.warns(dc.NotCachedWarning, match="compiled with gradients on"):
        actual = gradients_of(model, inputs)
    for own, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(own, other)
    (refusal,) = dc.summary(model).refusals
    assert "call the model under `torch.no_grad()` or `torch.inference_mode()`" in refusal
    with torch.no_grad():
        for step in trajectory(FLUX_MODEL, inputs, 3):
            model(**step)
    assert [step.hit for step in dc.summary(model).steps] == [False, True, True]
