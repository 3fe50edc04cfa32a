"""What a rank tells the others of a step before its decision (`ranks.standing`).

All that a decision goes by and that is not read: the settings, the images under way, and whether
what is held can be used. What an image has been through is one number, `Track.agreed`: a digest of
all that was read and decided, which is the same on ranks that saw and did the same. Where ranks
differ, each forgets the images that the call may be of and takes it for the first of a new one: so
all compute, and from then on are one again.
"""

from collections.abc import Sequence

from dit_cachegraph.ranks.standing import Standing, digest
from dit_cachegraph.requests.latents import Objects
from dit_cachegraph.requests.track import Track
from dit_cachegraph.runtime.step import Step


def standing_of(step: Step, latents: Objects, usable: Sequence[str | None]) -> Standing:
    """What this rank goes by. `usable`: of each track why it can't be used, None where it can."""
    tracks, table = step.conditioning.tracks, step.model.requests
    of_tracks = [_of_track(track, latents) for track in tracks]
    likely = [tracks.index(t) for t in (step.expected, step.partner) if t in tracks]
    num_calls = 0 if step.expected is None else step.expected.trajectory.num_calls
    settings = (step.plan.settings, step.plan.spans)
    return Standing(settings, (table.known, likely, of_tracks), usable, num_calls)


def _of_track(track: Track, latents: Objects) -> tuple[object, ...]:
    """All that may differ between ranks of an image that both know, but for what is held of it."""
    companions = [companion.agreed for companion in track.companions]
    last = track.last_call
    is_again = last is not None and latents.are_unwritten_since(last.latents)
    return (track.agreed, track.is_complete, companions, is_again)


def note_agreed(track: Track, step: Step) -> None:
    """The image went through this step on all ranks."""
    clock, sample = step.call.clock, step.call.sample
    seen = (clock, None if sample is None else sample.tobytes())
    track.agreed = digest((track.agreed, seen, step.decisions))
