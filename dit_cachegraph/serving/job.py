"""A request under way, between the client that waits for it and the worker that draws it."""

import asyncio
import base64
import io
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from dit_cachegraph.api import request
from dit_cachegraph.records import RequestReport
from dit_cachegraph.request_handle import RequestHandle
from dit_cachegraph.serving.ask import Ask
from dit_cachegraph.serving.limits import Refused
from dit_cachegraph.serving.studio import Preview
from dit_cachegraph.step_log import StepReport

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class Step:
    """A denoising step is done: what the passes of it decided, and how the picture looks."""

    preview: Preview
    decisions: tuple[StepReport, ...]


@dataclass(frozen=True, slots=True)
class Done:
    """The picture, as a PNG, and what was done for it."""

    png: bytes
    report: RequestReport


Event: TypeAlias = Step | Done | Refused


class Stopped(Exception):  # noqa: N818  # what ends a drawing is no error
    """Raised inside of a drawing that nobody waits for any more."""


@dataclass(eq=False)
class Job:
    """`events` are read in `loop`, and told from any thread. It ends with `Done` or `Refused`.
    `num_calls` are those of the studio."""

    ask: Ask
    loop: asyncio.AbstractEventLoop
    num_calls: int | None
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    is_cancelled: bool = False
    handle: RequestHandle = field(init=False)

    def __post_init__(self) -> None:
        self.handle = request(self.id, **self.ask.settings(self.num_calls))

    def tell(self, event: Event) -> None:
        """Hand an event to the client's side; nothing, where that has closed its loop."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)


def png_of(picture: "Image") -> bytes:
    """A picture as a PNG: equal pictures give equal bytes."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def data_url(png: bytes) -> str:
    """A PNG as a page shows it."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
