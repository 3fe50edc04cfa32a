"""Attention processors and backends of diffusers: changed between two images or within one."""

from collections.abc import Callable, Iterator

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.models.attention_dispatch import attention_backend
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from torch import Tensor

import dit_cachegraph as dc
from support.drawing import HITS, at_step, build, cached, draw
from support.running import relative_error

pytestmark = pytest.mark.e2e


@pytest.fixture(autouse=True)
def active_backend_is_put_back() -> Iterator[None]:
    """A model's `set_attention_backend` is also that of all models after it."""
    with attention_backend("native"):
        yield


class Fading(FluxAttnProcessor):
    """Half of what attention gives."""

    def __call__(self, *args: object, **kwargs: object) -> tuple[Tensor, ...]:
        return tuple(0.5 * out for out in super().__call__(*args, **kwargs))


def fade(pipe: DiffusionPipeline) -> None:
    attention = [m.attn for m in pipe.transformer.transformer_blocks]
    for module in attention:
        module.set_processor(Fading())


def fuse(pipe: DiffusionPipeline) -> None:
    pipe.transformer.fuse_qkv_projections()


def choose_math(pipe: DiffusionPipeline) -> None:
    pipe.transformer.set_attention_backend("_native_math")


@pytest.mark.parametrize(
    ("change", "is_other_image"),
    [(fade, True), (fuse, False), (choose_math, False)],
    ids=["set_processor", "fuse_qkv_projections", "set_attention_backend"],
)
def test_attention_changed(change: Callable[[DiffusionPipeline], None], is_other_image: bool):
    """What was kept before is not replayed after it, and the next image is drawn as if alone."""
    pipe = cached(build(), max_continuous_cached_steps=-1)
    before = draw(pipe)
    changed = draw(pipe, callback_on_step_end=at_step(4, change))
    assert before.hits == "..HHHHHHHH"
    assert (changed.hits, changed.reasons[5]) == ("..HHH.HHHH", "the graph changed")
    after = draw(pipe)
    fresh = build()
    change(fresh)
    alone = draw(cached(fresh, max_continuous_cached_steps=-1))
    assert after.hits == alone.hits == "..HHHHHHHH"
    assert relative_error(after.latents, alone.latents) < 1e-6
    assert (relative_error(after.latents, before.latents) > 1e-2) == is_other_image
    assert dc.summary(pipe).refusals == ()


def test_a_backend_for_one_call():
    pipe = cached(build())
    native = draw(pipe)
    with attention_backend("_native_math"):
        computed_by_math = draw(pipe)
    again = draw(pipe)
    assert native.hits == computed_by_math.hits == again.hits == HITS
    assert relative_error(computed_by_math.latents, native.latents) < 1e-4
    assert torch.equal(again.latents, native.latents)


def test_flex_attention():
    pipe = build()
    pipe.transformer.set_attention_backend("flex")
    cached(pipe)
    drawn = draw(pipe)
    assert drawn.hits == HITS
    assert relative_error(drawn.latents, draw(cached(build())).latents) < 1e-4
