"""Any text-to-image pipeline of diffusers, from a folder of this machine."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image

from dit_cachegraph.backend import cachedit
from dit_cachegraph.serving.ask import Ask
from dit_cachegraph.serving.studio import (
    OnStep,
    Painter,
    Preview,
    Size,
    Studio,
    why_not_that_size,
)
from dit_cachegraph.serving.twins import twin_of
from dit_cachegraph.targets import modules_in

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class PipelineStudio(Studio):
    """The pipeline in the folder `path`, on the GPU if there is one. It decodes no previews, since
    how latents become a picture differs from pipeline to pipeline."""

    def __init__(self, path: Path, sizes: tuple[Size, ...], inner_backend: str) -> None:
        self.sizes = sizes
        self._path, self._inner_backend = path, inner_backend
        self._pipe: DiffusionPipeline | None = None

    def why_not(self, ask: Ask) -> str | None:
        return why_not_that_size(self.sizes, ask)

    def num_calls_of(self, ask: Ask) -> int | None:
        """A scheduler of a higher order calls more than once a step, and of two transformers each
        draws a part."""
        if self._pipe is None or len(modules_in(self._pipe)) > 1:
            return None
        order = getattr(getattr(self._pipe, "scheduler", None), "order", None)
        return ask.num_steps if order == 1 else None

    def load(self) -> object:
        # Optional, and slow to import.
        from diffusers import DiffusionPipeline  # noqa: PLC0415

        left_out = _left_out(self._path)
        pipe = DiffusionPipeline.from_pretrained(self._path, local_files_only=True, **left_out)
        if torch.cuda.is_available():
            pipe.to("cuda", torch.bfloat16)
        for transformer in modules_in(pipe):
            transformer.compile(backend=cachedit, options={"inner_backend": self._inner_backend})
        self._pipe = pipe
        return pipe

    def painter(self) -> Painter:
        assert self._pipe is not None, "load comes first"
        pipe = twin_of(self._pipe)
        pipe.set_progress_bar_config(disable=True)
        return _PipelinePainter(pipe, self.sizes)

    def samples(self) -> list[Ask]:
        prompt = "a picture"
        if not self.sizes:
            return [Ask(prompt=prompt)]
        return [Ask(prompt=prompt, width=width, height=height) for width, height in self.sizes]


def _left_out(path: Path) -> dict[str, None]:
    """The parts that a pipeline was saved without: diffusers wants to be told so once more."""
    parts = json.loads((path / "model_index.json").read_text(encoding="utf-8"))
    return {name: None for name, kind in parts.items() if kind == [None, None]}


class _PipelinePainter(Painter):
    def __init__(self, pipe: "DiffusionPipeline", sizes: tuple[Size, ...]) -> None:
        self._pipe, self._sizes = pipe, sizes

    def paint(self, ask: Ask, on_step: OnStep) -> Image.Image:
        def after_step(_pipe: object, step: int, _timestep: object, kwargs: dict) -> dict:
            on_step(Preview(step, ask.num_steps, None))
            return kwargs

        width, height = ask.width, ask.height
        if width is None and self._sizes:
            width, height = self._sizes[0]
        size = {} if width is None else {"width": width, "height": height}
        generator = torch.Generator(self._pipe.device).manual_seed(ask.seed)
        return self._pipe(
            prompt=ask.prompt,
            num_inference_steps=ask.num_steps,
            generator=generator,
            callback_on_step_end=after_step,
            **size,
        ).images[0]
