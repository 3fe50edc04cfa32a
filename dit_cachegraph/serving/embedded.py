"""The model that comes with the package: 64 x 64 pixels, of 36 words, without any download."""

from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from dit_cachegraph.backend import cachedit
from dit_cachegraph.demo.codec import decode
from dit_cachegraph.demo.flux_scenes import (
    SIDE_ARGUMENT,
    SIDE_PIXELS,
    embed,
    load_pipeline,
    pipeline_around,
    shipped_prompts,
    unpack,
)
from dit_cachegraph.serving.ask import Ask
from dit_cachegraph.serving.studio import (
    OnStep,
    Painter,
    Preview,
    Studio,
    why_not_that_size,
)

if TYPE_CHECKING:
    from diffusers import FluxPipeline

# A prompt of the model has one of each, in this order; what a text leaves out is this.
_DEFAULTS = ("medium", "plain", "red", "circle", "center", "beige")


class EmbeddedStudio(Studio):
    """`inner_backend` compiles the segments."""

    sizes = ((SIDE_PIXELS, SIDE_PIXELS),)

    def __init__(self, inner_backend: str = "inductor") -> None:
        self._inner_backend = inner_backend
        self._pipe: FluxPipeline | None = None

    def why_not(self, ask: Ask) -> str | None:
        if words_of(ask.prompt) is None:
            known = ", ".join(sorted(word for words in _choices() for word in words))
            return f"prompt names nothing that this model draws; it knows {known}"
        return why_not_that_size(self.sizes, ask)

    def num_calls_of(self, ask: Ask) -> int | None:
        return ask.num_steps

    def load(self) -> object:
        self._pipe = load_pipeline()
        options = {"inner_backend": self._inner_backend}
        self._pipe.transformer.compile(backend=cachedit, options=options)
        return self._pipe

    def painter(self) -> Painter:
        assert self._pipe is not None, "load comes first"
        return _EmbeddedPainter(pipeline_around(self._pipe.transformer))

    def samples(self) -> list[Ask]:
        return [Ask(prompt=shipped_prompts()[0])]


class _EmbeddedPainter(Painter):
    def __init__(self, pipe: "FluxPipeline") -> None:
        self._pipe = pipe

    def paint(self, ask: Ask, on_step: OnStep) -> Image.Image:
        def after_step(_pipe: object, step: int, _timestep: object, kwargs: dict) -> dict:
            on_step(Preview(step, ask.num_steps, _picture(kwargs["latents"])))
            return kwargs

        words = words_of(ask.prompt)
        assert words is not None, "the prompt was checked"
        embeddings = embed([" ".join(words)])
        tokens = self._pipe(
            prompt_embeds=embeddings,
            pooled_prompt_embeds=embeddings.mean(1),
            height=SIDE_ARGUMENT,
            width=SIDE_ARGUMENT,
            num_inference_steps=ask.num_steps,
            guidance_scale=0.0,
            generator=torch.Generator().manual_seed(ask.seed),
            output_type="latent",
            callback_on_step_end=after_step,
        ).images
        return _picture(tokens)


def words_of(text: str) -> tuple[str, ...] | None:
    """The prompt that a text comes to: a word of each kind, the first that is in it, or the usual
    one. None where it has none at all."""
    named = [word.strip(".,;:!?").lower() for word in text.split()]
    found = [next((word for word in named if word in words), None) for words in _choices()]
    if not any(found):
        return None
    return tuple(word or usual for word, usual in zip(found, _DEFAULTS, strict=True))


def _choices() -> list[frozenset[str]]:
    """The words of each kind, as the shipped prompts have them: all but `a`, `at` and `on`."""
    kinds = zip(*(prompt.split() for prompt in shipped_prompts()), strict=True)
    return [frozenset(words) for words in kinds if len(set(words)) > 1]


def _picture(tokens: Tensor) -> Image.Image:
    """[1, 64, 48] tokens as 64 x 64 pixels."""
    pixels = decode(unpack(tokens))[0].clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())
