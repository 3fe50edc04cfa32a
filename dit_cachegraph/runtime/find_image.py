"""Which image a call goes on with, of those under way on its branch; or a new one.

    clock      goes on in the schedule's direction
    latents    the shape of the image's, and near its last ones (`sketch`)

Where several images fit, the passes of guidance that share a latents object decide, then the
latents themselves. What stays unclear computes.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from dit_cachegraph.runtime.cache_state import Branch, Image, Passes
from dit_cachegraph.runtime.passes import are_in_doubt, passes_of
from dit_cachegraph.runtime.sight import Sight
from dit_cachegraph.runtime.sketch import closeness, is_clearly_nearer, is_same
from dit_cachegraph.runtime.trajectory import Known, Moment, advance, begin

AMBIGUOUS = "ambiguous request: name it with request(key)"


class Match(NamedTuple):
    """The image that a call goes on with, None for a new one; what the call is to it; and what is
    known now of passes that may share it."""

    image: Image | None
    moment: Moment
    passes: Passes


class _Fit(NamedTuple):
    image: Image
    moment: Moment
    close: float | None
    is_again: bool


def find_image(images: Sequence[Image], sight: Sight, known: Known, partner: Image | None) -> Match:
    """The image of a call. `partner` is that of the pass of guidance that was called with the same
    latents object, if there was one."""
    fits = [fit for image in reversed(images) if (fit := _fit(image, sight, known, partner))]
    fits = [fit for fit in fits if not _is_last_resort(fit)] or fits
    if not fits:
        moment = begin(sight.clock, sight.shape, known)
        return Match(None, moment, passes_of(None, images, sight))
    best, is_clear = _choose(fits, sight, partner)
    image, moment, passes = best.image, best.moment, passes_of(best.image, images, sight)
    if not is_clear or are_in_doubt(image, passes):
        moment = moment._replace(doubt=AMBIGUOUS)
    return Match(image, moment, passes)


def find_partner(branch: Branch, others: Iterable[Image]) -> Image | None:
    """The image of `branch` that is of one request with any of `others`, which were called with the
    same latents object."""
    for other in others:
        for companion in other.companions:
            if companion.branch is branch:
                return companion
    return None


def _fit(image: Image, sight: Sight, known: Known, partner: Image | None) -> _Fit | None:
    if image.is_complete and sight.clock is None:
        return None
    is_unmoved = is_same(sight.sketch, image.sketch)
    is_again = is_unmoved and sight.clock == image.trajectory.last
    if is_again and image.signature != sight.signature:
        return None  # Another trunk on the same latents: a guidance branch of its own.
    if is_unmoved and _is_at_the_first_timestep(image, sight):
        return None  # The same seed again, with another guidance scale.
    close = closeness(sight.sketch, image.sketch)
    told = None if image is partner else close
    moment = advance(image.trajectory, sight.clock, sight.shape, known, told)
    return None if moment.is_new_image else _Fit(image, moment, close, is_again)


def _is_last_resort(fit: _Fit) -> bool:
    """True for an image that is at this very point, at its end, or most likely given up."""
    return fit.is_again or fit.image.is_complete or fit.image.has_successor


def _is_at_the_first_timestep(image: Image, sight: Sight) -> bool:
    """True if no step of the image has moved its timestep: the first entries of the clock."""
    first, clock = image.trajectory.first, sight.clock
    return first is not None and clock is not None and first[:2] == clock[:2]


def _choose(fits: Sequence[_Fit], sight: Sight, partner: Image | None) -> tuple[_Fit, bool]:
    """The best fit, and whether it is clear that it is."""
    if len(fits) == 1:
        return fits[0], True
    for fit in fits:
        if fit.image is partner:
            return fit, True
    if any(fit.close is None for fit in fits):
        return fits[0], False
    ranked = sorted(fits, key=lambda fit: -(fit.close or 0.0))
    rivals = [f for f in ranked[1:] if not is_clearly_nearer(ranked[0].close or 0, f.close or 0)]
    if not rivals:
        return ranked[0], True
    tied = [ranked[0], *rivals]
    if all(are_twins(ranked[0].image, rival.image) for rival in rivals):
        own = [fit for fit in tied if fit.image.signature == sight.signature]
        return (own or tied)[0], True
    return ranked[0], False


def are_twins(image: Image, other: Image) -> bool:
    """True for images that are, so far, the same: one seed drawn twice, or two trunks that are
    called with the same latents."""
    last, others = image.trajectory.last, other.trajectory.last
    # Beside the timestep, the clock may have a guidance scale, which a second try may change.
    return is_same(image.sketch, other.sketch) and (last or ())[:2] == (others or ())[:2]
