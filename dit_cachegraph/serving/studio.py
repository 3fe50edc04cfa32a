"""What draws: one transformer that all workers share, and what each of them has of its own."""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dit_cachegraph.serving.ask import Ask

if TYPE_CHECKING:
    from PIL.Image import Image

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Preview:
    """The picture after `step` of `num_steps` steps, where there is a cheap one."""

    step: int
    num_steps: int
    picture: "Image | None"


OnStep = Callable[[Preview], None]


class Painter(abc.ABC):
    """A pipeline with a scheduler of its own, around the transformer that is shared."""

    @abc.abstractmethod
    def paint(self, ask: Ask, on_step: OnStep) -> "Image":
        """Draw; `on_step` is called after each denoising step, and ends it where it raises."""


class Studio(abc.ABC):
    """`sizes` are those that it draws, in pixels, the first of them unasked; where there are none,
    it is the model's own, and a client names none. What needs no model is answered before there is
    one."""

    sizes: tuple[Size, ...]

    @abc.abstractmethod
    def why_not(self, ask: Ask) -> str | None:
        """Why it can't draw that, in a sentence; None if it can."""

    def num_calls_of(self, ask: Ask) -> int | None:
        """How often each pass of guidance of a picture calls the model, where it is known before:
        state then goes with the last call, and "draft" places what it computes among them."""
        return None

    @abc.abstractmethod
    def load(self) -> object:
        """Load and compile the model: called once, before `painter`. Returns what `summary` and
        `check` are asked with."""

    @abc.abstractmethod
    def painter(self) -> Painter:
        """A new painter, for one thread."""

    @abc.abstractmethod
    def samples(self) -> list[Ask]:
        """What to draw before any request: a picture of each size."""


def why_not_that_size(sizes: tuple[Size, ...], ask: Ask) -> str | None:
    """Why a size isn't drawn, where it is none of these."""
    if (ask.width is None) != (ask.height is None):
        return "width and height go together: give both, or none"
    if ask.width is None or (ask.width, ask.height) in sizes:
        return None
    known = ", ".join(f"{width} x {height}" for width, height in sizes)
    drawn = known or "the model's own size, for which a request names none,"
    return f"{ask.width} x {ask.height} isn't drawn here: {drawn} is"
