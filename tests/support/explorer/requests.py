"""The requests that the state explorer makes: what they call the model with, in which order.

A request owns its conditioning and hands it over at each call as it is, sliced anew or rebuilt. An
image of it starts from noise of its own and turns smoothly towards its picture, by a schedule.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from support.explorer.asks import AS_IT_IS, KINDS, REBUILT, SLICED, Ask
from support.explorer.dit import DIM, FRAME_TOKENS
from support.explorer.lone_image import LoneImage

LAST_ANGLE = 84.0  # Degrees from noise (0) to picture (90).


@dataclass(eq=False)
class Conditioning:
    """One tensor of a request, and how it comes to the model. `content` numbers equal contents."""

    owned: Tensor
    comes: str
    content: int

    def hand_over(self) -> Tensor:
        if self.comes == REBUILT:
            return self.owned.clone()
        return self.owned[1:-1] if self.comes == SLICED else self.owned

    def looks_like(self, other: "Conditioning") -> bool:
        """Whether nobody can tell the two from their tensors."""
        is_rebuilt = REBUILT in (self.comes, other.comes)
        return self is other or (is_rebuilt and self.content == other.content)


def condition(content: int, shape: Sequence[int], comes: str = AS_IT_IS) -> Conditioning:
    """Numbers that `content` alone decides; equal contents are tensors of their own."""
    generator = torch.Generator().manual_seed(content)
    numbers = torch.randn(tuple(shape), generator=generator)
    if comes == SLICED:
        numbers = torch.cat([numbers[:1], numbers, numbers[:1]])
    return Conditioning(numbers, comes, content)


@dataclass(eq=False)
class Request:
    """A user's prompts and what else stays from image to image."""

    name: str
    ask: Ask
    texts: dict[str, Conditioning]
    ids: Conditioning
    guidance: Tensor
    key: str | None = None
    last_seed: int = 0

    @property
    def is_rebuilt(self) -> bool:
        return any(c.comes == REBUILT for c in (*self.texts.values(), self.ids))


@dataclass(frozen=True)
class Call:
    """One call of an image: at which point of its schedule, for which pass, by which model."""

    point: int
    branch: str
    model: int
    is_of_another_graph: bool


class Image:
    """One image of a request, under way."""

    def __init__(
        self, name: str, request: Request, seed: int, *, ascends: bool, skips: int = 0
    ) -> None:
        ask = request.ask
        self.name, self.request, self.seed, self.key = name, request, seed, request.key
        self.kind, self.guidance = KINDS[ask.kind], request.guidance
        self.skips = skips
        # A pair of Heun's evaluations is entered at its second one, as the schedulers do.
        skips *= 2 if ask.pace == "Heun" else 1
        self.points = schedule(ask.pace, ask.num_steps, ascends)[skips:]
        self.calls = list(self._plan(ask))
        self.num_calls_made = 0
        self.lones: dict[tuple[int, str], LoneImage] = {}
        generator = torch.Generator().manual_seed(1_000_000 + seed)
        self._noise, self._picture = (
            torch.randn(1, self.kind.num_tokens, DIM, generator=generator) for _ in range(2)
        )
        self._point_shown: int | None = None
        self._latents: Tensor | None = None
        self._timestep: Tensor | None = None

    def _plan(self, ask: Ask) -> Iterator[Call]:
        num_points = len(self.points)
        for point in range(num_points):
            is_middle = num_points // 3 <= point < 2 * num_points // 3
            # Heun and two experts together would call the second one twice at its first timestep,
            # which is an image of one step and another one.
            switches = ask.experts == "switch" and ask.pace != "Heun"
            model = int(ask.experts == "second" or (switches and is_middle))
            for branch in ask.passes:
                if branch == "cond" or not ask.guidance_ends or point < num_points // 2:
                    is_odd = ask.has_odd_graph and point >= num_points // 2
                    yield Call(point, branch, model, is_odd)

    @property
    def next_call(self) -> Call:
        return self.calls[self.num_calls_made]

    @property
    def is_done(self) -> bool:
        return self.num_calls_made == len(self.calls)

    def steps_told(self, call: Call) -> int:
        """What this image says of its number of steps on a model: the truth, or too few. Where no
        clock is read, that would be the end of it."""
        alike = [c for c in self.calls if (c.model, c.branch) == (call.model, "cond")]
        ask = self.request.ask
        is_wrong = ask.tells_steps == "too few" and not ask.reads_no_clock
        return max(1, len(alike) - 2 * is_wrong)

    def inputs(self, call: Call) -> dict[str, Tensor]:
        """What the model is called with. All passes of a step get one latents object, unless each
        gets a copy."""
        if call.point != self._point_shown:
            self._show(call.point)
        assert self._latents is not None and self._timestep is not None
        is_copied = self.request.ask.latents == "copied"
        return {
            "hidden_states": self._latents.clone() if is_copied else self._latents,
            "timestep": self._timestep,
            "encoder_hidden_states": self.request.texts[call.branch].hand_over(),
            "position_ids": self.request.ids.hand_over(),
            "guidance": self.guidance,
        }

    def _show(self, point: int) -> None:
        kind, (timestep, angle) = self.kind, self.points[point]
        turned = math.radians(angle)
        latents = math.cos(turned) * self._noise + math.sin(turned) * self._picture
        per_token = torch.full((1, kind.num_tokens), timestep)
        if kind.timestep == "per token":
            latents[:, :FRAME_TOKENS] = 0.5
            per_token[:, :FRAME_TOKENS] = 0
        latents, per_token = latents.repeat(kind.batch, 1, 1), per_token.repeat(kind.batch, 1)
        if self.request.ask.latents == "in place" and self._latents is not None:
            self._latents.copy_(latents)
        else:
            self._latents = latents
        timesteps = per_token if kind.timestep == "per token" else per_token[:, 0].clone()
        self._timestep = timesteps.round().long() if kind.timestep == "integer" else timesteps
        self._point_shown = point

    def looks_like(self, other: "Image") -> bool:
        """Whether nothing but the latents tells the two apart while both are under way."""
        return self.is_called_as(other, "cond")

    def is_called_as(self, other: "Image", branch: str) -> bool:
        """Whether a pass of the two has the same conditioning, as far as anybody can tell."""
        mine, others = self.request, other.request
        return (
            self.key == other.key
            and (self.kind.num_tokens, self.kind.batch) == (other.kind.num_tokens, other.kind.batch)
            and branch in others.texts
            and mine.texts[branch].looks_like(others.texts[branch])
            and mine.ids.looks_like(others.ids)
        )


def schedule(pace: str, num_steps: int, ascends: bool) -> list[tuple[float, float]]:
    """(timestep, angle) of each call of a branch. The latents of neighbours correlate by 0.85."""
    num_strides = num_steps - 1
    strides = [1.0] * num_strides
    if pace == "uneven":
        rng = random.Random(num_steps)
        strides = [rng.uniform(0.6, 1.4) for _ in strides]
    angles = [LAST_ANGLE * sum(strides[:i]) / sum(strides) for i in range(num_steps)]
    at = [(1000 * (angle if ascends else 90 - angle) / 90, angle) for angle in angles]
    if pace == "Heun":
        return [at[0], *((t, turned) for t, angle in at[1:] for turned in (angle + 3, angle))]
    return at
