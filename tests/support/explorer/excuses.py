"""Where a step may be decided otherwise than alone, since nobody could know better.

ANYTHING      the step may count otherwise; a hit must still replay what this very image kept
MAY_COMPUTE   it may compute where alone it would be a hit
"""

import enum
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from support.explorer.lone_image import LoneImage
from support.explorer.requests import Call, Conditioning, Image

NUM_TO_KNOW = 3  # Timesteps of one image after which the direction of the schedule is known.
NUM_NEAR_END = 3  # So few points before its end, an image that is left may look whole.


class Excuse(enum.Enum):
    NONE = "no excuse"
    MAY_COMPUTE = "may compute"
    ANYTHING = "anything"


class _Trace(NamedTuple):
    """Conditioning that may be gone; then what has its content goes on with its images."""

    conditioning: "weakref.ref[Conditioning]"
    content: int

    def fits(self, now: Conditioning) -> bool:
        own = self.conditioning()
        return self.content == now.content if own is None else own.looks_like(now)


class _First(NamedTuple):
    """The first step of an image at a place, the only one so far. What begins later in the schedule
    may be its second step: some samplers forget the latents of the first. Of the same noise, and
    while the direction is unknown, so may what begins before it."""

    look: tuple[object, ...]
    text: _Trace
    ids: _Trace
    timestep: float
    is_enabled: bool
    seed: int

    def may_be_followed_by(self, image: Image, call: Call, ascends: bool, model: "_Model") -> bool:
        timestep, is_near = image.points[call.point][0], image.seed == self.seed
        is_later = timestep > self.timestep if ascends else timestep < self.timestep
        is_next = is_later and not model.keeps_start
        if is_near and not model.is_direction_known:
            is_next = timestep != self.timestep
        texts, ids = image.request.texts, image.request.ids
        is_alike = self.text.fits(texts[call.branch]) and self.ids.fits(ids)
        return is_next and is_alike and self.look == _look(image)


def _look(image: Image) -> tuple[object, ...]:
    return (image.key, image.kind.num_tokens, image.kind.batch)


def _is_past(lone: LoneImage, settings: Mapping[str, object]) -> bool:
    told = settings.get("num_inference_steps")
    return isinstance(told, int) and lone.step > told


@dataclass
class _Past:
    """What happened to an image so far. A place is a model and a branch. `followed_at` are those
    where another image began under the same conditioning since this one computed, and nothing said
    that it is of another request."""

    turns: dict[int, int] = field(default_factory=dict)
    overtaken_on: set[int] = field(default_factory=set)
    is_crowded: bool = False
    lost_on: set[int] = field(default_factory=set)
    unrecognised_at: set[tuple[int, str]] = field(default_factory=set)
    timesteps: dict[tuple[int, str], set[float]] = field(default_factory=dict)
    computed_at: dict[tuple[int, str], int] = field(default_factory=dict)
    stands_at: dict[tuple[int, str], tuple[int, float]] = field(default_factory=dict)
    first_at: dict[tuple[int, str], _First] = field(default_factory=dict)
    counts_on_at: set[tuple[int, str]] = field(default_factory=set)
    followed_at: set[tuple[int, str]] = field(default_factory=set)


@dataclass
class _Model:
    """What a model can know from the calls that it had. `last_bounded` is its last call under a
    bound in bytes; `ends`, where images stood so late that they looked whole; `begun`, the seeds
    of images that were left after their first step; `firsts`, the images with one step;
    `keeps_start`, that the latents of a first step were near those of the second; and `past_end`,
    seeds and names of images that went on after the end that they were told: of another one of the
    same noise that does, a call may be taken for one more of theirs. `counted_on` are the noises
    and timesteps of first steps that may count as the second one of another image: where one is
    made once more, that image seems to repeat its last call."""

    is_direction_known: bool = False
    has_recognised_rebuilt: bool = False
    last_bounded: int = -1
    ends: set[tuple[int, float]] = field(default_factory=set)
    begun: set[int] = field(default_factory=set)
    firsts: list[_First] = field(default_factory=list)
    keeps_start: bool = False
    past_end: set[tuple[int, str]] = field(default_factory=set)
    counted_on: set[tuple[int, float]] = field(default_factory=set)


class Excuses:
    """Follows all calls, and says for each what may be otherwise than alone."""

    def __init__(self, num_models: int, ascends: bool, passes_are_coupled: bool) -> None:
        self._ascends, self._passes_are_coupled = ascends, passes_are_coupled
        self._models = [_Model() for _ in range(num_models)]
        self._pasts: weakref.WeakKeyDictionary[Image, _Past] = weakref.WeakKeyDictionary()
        self._turn = 0

    def before(self, image: Image, call: Call, others: Iterable[Image]) -> None:
        """An image is called while `others` are under way."""
        past, on = self._past(image), call.model
        if on not in past.turns and self._ascends and not self._models[on].is_direction_known:
            past.lost_on.add(on)
        self._begin(image, call, others)
        for other in others:
            theirs = self._past(other)
            if other is image or on not in theirs.turns or not image.looks_like(other):
                continue
            # Both were called, in turns, and nothing but their latents tells them apart.
            if on in past.overtaken_on and theirs.turns[on] > past.turns[on]:
                theirs.is_crowded = True
            theirs.overtaken_on.add(on)
        past.is_crowded |= on in past.overtaken_on
        past.overtaken_on.discard(on)
        self._turn += 1
        past.turns[on] = self._turn

    def _begin(self, image: Image, call: Call, others: Iterable[Image]) -> None:
        """The first step of an image may be counted as the second one of another, or be taken for
        the end of one whose passes share no latents object."""
        past, model, place = self._past(image), self._models[call.model], (call.model, call.branch)
        if place in past.stands_at:
            return
        followed = [
            f for f in model.firsts if f.may_be_followed_by(image, call, self._ascends, model)
        ]
        for other in [o for o in others if o is not image and image.is_called_as(o, call.branch)]:
            # It may have ended, for all that can be told.
            self._note_end(other, call.model)
            if other.request.ask.latents == "copied":
                self._past(other).followed_at.add(place)
        if followed or (image.seed, image.points[call.point][0]) in model.counted_on:
            past.counts_on_at.add(place)
        if len(followed) == 1:
            model.firsts.remove(followed[0])

    def _follow_first(self, image: Image, call: Call, step: int, is_enabled: bool) -> None:
        """An image has made a step, the first at its place or a further one."""
        past, model, place = self._past(image), self._models[call.model], (call.model, call.branch)
        if step == 1 and place not in past.counts_on_at:
            request, timestep = image.request, image.points[call.point][0]
            text, ids = (
                _Trace(weakref.ref(c), c.content) for c in (request.texts[call.branch], request.ids)
            )
            first = _First(_look(image), text, ids, timestep, is_enabled, image.seed)
            past.first_at[place] = first
            model.firsts.append(first)
        elif step == 1:
            model.counted_on.add((image.seed, image.points[call.point][0]))
        elif (known := past.first_at.pop(place, None)) is not None:
            model.firsts = [other for other in model.firsts if other is not known]
            is_known = not past.is_crowded and call.model not in past.lost_on
            is_read = is_enabled and known.is_enabled and not image.request.ask.reads_no_clock
            model.keeps_start |= is_known and is_read and place not in past.counts_on_at

    def after(
        self, image: Image, call: Call, lone: LoneImage, hit: bool, settings: Mapping[str, object]
    ) -> None:
        past, model, place = self._past(image), self._models[call.model], (call.model, call.branch)
        if not hit:
            past.computed_at[place] = self._turn
            past.followed_at.discard(place)
        timestep = image.points[call.point][0]
        self._follow_first(image, call, lone.step, settings.get("enabled") is not False)
        past.stands_at[place] = (lone.step, timestep)
        if _is_past(lone, settings):
            model.past_end.add((image.seed, image.name))
        if settings.get("max_state_bytes") is not None:
            model.last_bounded = self._turn
        if image.request.is_rebuilt and lone.step == 1 and not model.has_recognised_rebuilt:
            past.unrecognised_at.add(place)
        model.has_recognised_rebuilt |= image.request.is_rebuilt and lone.step > 1
        if not image.request.ask.reads_no_clock:
            timesteps = past.timesteps.setdefault(place, set())
            timesteps.add(timestep)
            model.is_direction_known |= len(timesteps) >= NUM_TO_KNOW

    def excuse(
        self, image: Image, call: Call, lone: LoneImage, settings: Mapping[str, object]
    ) -> Excuse:
        past, model, place = self._past(image), self._models[call.model], (call.model, call.branch)
        counts_on = any(
            at == place or (at[0] == call.model and self._passes_are_coupled)
            for at in past.counts_on_at
        )
        if past.is_crowded or call.model in past.lost_on or counts_on:
            return Excuse.ANYTHING
        # The first request that rebuilds its conditioning is known for one at its second step.
        is_unrecognised = place in past.unrecognised_at and lone.step == 1
        is_evicted = past.computed_at.get(place, self._turn) <= model.last_bounded
        is_past_end = lone.step == settings.get("num_inference_steps")
        is_past_end |= past.stands_at.get(place) in model.ends
        is_past_end |= _is_past(lone, settings) and any(
            seed == image.seed and name != image.name for seed, name in model.past_end
        )
        # A first step that is made twice may be two passes of guidance; the third call tells.
        may_be_passes = lone.step == 1 and image.seed in model.begun
        is_followed = place in past.followed_at
        if is_unrecognised or is_evicted or is_past_end or may_be_passes or is_followed:
            return Excuse.MAY_COMPUTE
        return Excuse.NONE

    def leave(self, image: Image) -> None:
        """An image is aborted."""
        for (on, _), stand in self._past(image).stands_at.items():
            if stand[0] == 1:
                self._models[on].begun.add(image.seed)
            self._note_end(image, on)

    def _note_end(self, image: Image, on: int) -> None:
        """Where an image stands on a model may be taken for the end of all like it."""
        last_timesteps = {timestep for timestep, _ in image.points[-NUM_NEAR_END:]}
        for (other, _), stand in self._past(image).stands_at.items():
            if other == on and stand[1] in last_timesteps:
                self._models[on].ends.add(stand)

    def lose(self, image: Image, index: int) -> None:
        """What is kept of an image on a model was dropped."""
        past = self._past(image)
        past.lost_on.add(index)
        model = self._models[index]
        model.firsts = [first for first in model.firsts if first.look[0] != image.key]
        past.timesteps = {at: seen for at, seen in past.timesteps.items() if at[0] != index}

    def reset(self, index: int) -> None:
        """All that a model keeps was dropped."""
        self._models[index] = _Model(keeps_start=self._models[index].keeps_start)

    def _past(self, image: Image) -> _Past:
        return self._pasts.setdefault(image, _Past())
