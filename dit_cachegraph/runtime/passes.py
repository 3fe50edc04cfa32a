"""Passes of guidance that nothing tells apart: they differ in a number, in a label that is taken
for a clock, in a text that is taken for a control, or in what is written into one buffer where
nobody counts writes. All of them end up on one image, where each would replay what another left.

    step 0   A | B, the same latents at the same timestep     ... or one seed again, after an abort
    step 1   A                                                computes: it could be either
             B, once more the same latents                    it was no abort: all steps compute

A later step that is called again with the very same object, unwritten, says so at once. One with an
equal copy may be somebody who tries a call twice; the next step that is called again tells.
"""

from collections.abc import Sequence

from dit_cachegraph.runtime.cache_state import Image, Passes
from dit_cachegraph.runtime.sight import Sight
from dit_cachegraph.runtime.sketch import is_same


def passes_of(image: Image | None, images: Sequence[Image], sight: Sight) -> Passes:
    """What a call tells of an image, None for a new one among `images`."""
    timestep = (sight.clock or ())[:2]
    if image is None:
        is_again = any(_has_just_been_called(other, sight) for other in images)
        return Passes(timestep if is_again else None)
    known = image.passes
    if known.are_certain or not _has_just_been_called(image, sight):
        return known
    is_second_time = known.twice_at not in (None, timestep)
    return Passes(timestep, is_second_time or _has_the_same_object(image, sight))


def are_in_doubt(image: Image, passes: Passes) -> bool:
    """True where an image may be that of several passes, so that what it kept is of any of them."""
    is_second_step = image.trajectory.num_calls == 1
    return passes.are_certain or (is_second_step and image.passes.twice_at is not None)


def _has_just_been_called(image: Image, sight: Sight) -> bool:
    """True if the last call of an image was with these latents, at this timestep."""
    is_same_trunk = image.signature == sight.signature
    # Beside the timestep, the clock may have a label, which differs from pass to pass.
    if not is_same_trunk or (image.trajectory.last or ())[:2] != (sight.clock or ())[:2]:
        return False
    if image.sketch is None or sight.sketch is None:
        return _has_the_same_object(image, sight)
    return is_same(image.sketch, sight.sketch)


def _has_the_same_object(image: Image, sight: Sight) -> bool:
    """True for latents that are the very same object. Where nobody counts writes, none is taken to
    have happened: then the step computes, which is never wrong."""
    is_same_object = sight.latents is not None and sight.latents.is_that_of(image.latents)
    return is_same_object and sight.latents_versions == image.latents_versions
