"""Which track a call goes on with, of those under its conditioning; or a new one.

    clock      goes on in the schedule's direction
    latents    the shape of the track's, and near its last ones (`latents.closeness`)

Where several fit, the passes of guidance that share a latents object decide, then the latents
themselves. What stays unclear computes, and so does what repeats the last call: passes that nothing
tells apart (they differ in a Python number, in a label that is taken for a clock, or in a text that
is taken for an injected residual) end up on one track, where each would replay what another left.

    step 4   A, then B with A's latents at A's timestep      B computes
    step 5   A computes: what is held may be B's
             B, which repeats A's call once more             such passes: from now on all compute
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from dit_cachegraph.requests.fingerprint import Fingerprint
from dit_cachegraph.requests.latents import (
    MIN_CORRELATION,
    closeness,
    is_clearly_nearer,
    is_same,
)
from dit_cachegraph.requests.schedule import (
    UNLIKE,
    Clock,
    Known,
    StepMatch,
    advance,
    begin,
    turned,
)
from dit_cachegraph.requests.track import Track

NEXT_BEGAN = "its state was freed when the next image began under the same conditioning"
AMBIGUOUS = "ambiguous request: name it with request(key)"


class Match(NamedTuple):
    """The track that a call goes on with, None for a new one; what the call is to it; and where it
    was called twice with the same latents, and whether that came twice."""

    track: Track | None
    step: StepMatch
    repeated_at: Clock | None = None
    is_shared: bool = False

    @property
    def may_be_of_another_image(self) -> bool:
        """True where the latents are unlike the track's: its image may have changed here."""
        return self.step.doubt == UNLIKE

    def doubted(self, why: str) -> "Match":
        """The same for a call that computes."""
        return self._replace(step=self.step._replace(doubt=why))


_Fit = tuple[Track, StepMatch]


def find_track(
    tracks: Sequence[Track], call: Fingerprint, known: Known, partner: Track | None
) -> Match:
    """The track of a call. `partner` is that of the pass of guidance that was called with the same
    latents object, if there was one."""
    matches = [(track, _step(track, call, known, partner)) for track in reversed(tracks)]
    fits = [(track, step) for track, step in matches if step is not None]
    fits = [fit for fit in fits if not _is_last_resort(fit[0], call)] or fits
    if not fits:
        is_again = any(call.repeats(track.last_call) for track in tracks)
        step = begin(call.clock, call.shape, known)
        return Match(None, step, call.timestep if is_again else None)
    best, is_clear = _choose(fits, call, partner)
    return _doubted(best, call, is_clear=is_clear)


def _doubted(fit: _Fit, call: Fingerprint, *, is_clear: bool) -> Match:
    """With a doubt where the call, or the one before it, may be another pass of guidance."""
    track, step = fit
    is_again = call.repeats(track.last_call)
    is_shared = track.is_shared or (is_again and track.repeated_at not in (None, call.timestep))
    assert track.last_call is not None, "a track without a call fits none"
    is_after = track.repeated_at == track.last_call.timestep
    repeated_at = call.timestep if is_again else track.repeated_at
    match = Match(track, step, repeated_at, is_shared)
    is_doubtful = not is_clear or is_shared or is_again or is_after
    return match.doubted(AMBIGUOUS) if is_doubtful else match


def find_partner(tracks: Sequence[Track], others: Iterable[Track]) -> Track | None:
    """The one of `tracks` that is of one request with any of `others`, which were called with the
    same latents object. All calls of either were surely of one image."""
    sure = [other for other in others if not other.is_unsure]
    companions = {id(track) for other in sure for track in other.companions}
    own = (track for track in tracks if id(track) in companions)
    return next((track for track in own if not track.is_unsure), None)


def _step(track: Track, call: Fingerprint, known: Known, partner: Track | None) -> StepMatch | None:
    """The step that a call is of a track; None where it can't be one."""
    last = track.last_call
    if last is None or (track.is_complete and call.clock is None):
        return None
    if last.signature != call.signature and _is_again(track, call):
        return None  # Another trunk on the same latents: a guidance branch of its own.
    if _is_at_the_first_timestep(track, call) and is_same(call.sample, last.sample):
        return None  # The same seed again, with another guidance scale.
    close = closeness(call.sample, last.sample)
    near = None if track is partner else close
    step = advance(track.trajectory, call.clock, call.shape, known, near)
    is_sure = track is partner or (close is not None and close >= MIN_CORRELATION)
    if step.is_new_image and is_sure and _is_one_step_on(track, call):
        step = turned(track.trajectory, call.clock, known) or step
    return None if step.is_new_image else step._replace(close=close)


def _is_one_step_on(track: Track, call: Fingerprint) -> bool:
    """True where the latents may be the track's, and were worked on since."""
    last = track.last_call
    return last is not None and last.shape == call.shape and not is_same(call.sample, last.sample)


def _is_again(track: Track, call: Fingerprint) -> bool:
    """True for the track's last latents at its last clock."""
    last = track.last_call
    if last is None or call.clock != track.trajectory.last:
        return False
    return is_same(call.sample, last.sample)


def _is_last_resort(track: Track, call: Fingerprint) -> bool:
    """True for a track that is at this very point, at its end, or most likely given up."""
    return _is_again(track, call) or track.is_complete or track.lost == NEXT_BEGAN


def _is_at_the_first_timestep(track: Track, call: Fingerprint) -> bool:
    """True if no step of the image has moved its timestep."""
    first = track.trajectory.first
    return first is not None and call.clock is not None and first[:2] == call.timestep


def _choose(fits: Sequence[_Fit], call: Fingerprint, partner: Track | None) -> tuple[_Fit, bool]:
    """The best fit, and whether it is clear that it is."""
    if len(fits) == 1:
        return fits[0], True
    for fit in fits:
        if fit[0] is partner:
            return fit, True
    if any(step.close is None for _, step in fits):
        return fits[0], False
    best, *others = sorted(fits, key=lambda fit: -(fit[1].close or 0.0))
    close = best[1].close or 0.0
    rivals = [fit for fit in others if not is_clearly_nearer(close, fit[1].close or 0.0)]
    if not rivals:
        return best, True
    if all(are_twins(best[0], rival) for rival, _ in rivals):
        own = [fit for fit in (best, *rivals) if _signature(fit[0]) == call.signature]
        return (own or [best])[0], True
    return best, False


def _signature(track: Track) -> int | None:
    return None if track.last_call is None else track.last_call.signature


def are_twins(track: Track, other: Track) -> bool:
    """True for images that are, so far, the same: one seed drawn twice, or two trunks that are
    called with the same latents."""
    last, theirs = track.last_call, other.last_call
    if last is None or theirs is None:
        return False
    # Beside the timestep, the clock may have a guidance scale, which a second try may change.
    return is_same(last.sample, theirs.sample) and last.timestep == theirs.timestep
