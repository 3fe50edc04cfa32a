"""How long the tensors of an image are held.

    the next image under the same conditioning begins    freed, unless a companion shows that the
                                                         image belongs to another request
    ... under another `request(key)`                     freed once two have begun since its last
                                                         call, if it looks whole and nobody has a
                                                         handle of it
    the last step, where the number of steps is known    freed: nothing is held while the VAE runs
    no call of its request for `max_idle_seconds`        freed when the next step begins
    more bytes than `max_state_bytes`                    freed, least recently used first

An image that lost its tensors goes on knowing its step; it computes, and says why.
"""

import time

from dit_cachegraph.config import CommonSettings
from dit_cachegraph.requests.conditioning import Conditioning
from dit_cachegraph.requests.match import NEXT_BEGAN, are_twins
from dit_cachegraph.requests.schedule import looks_whole
from dit_cachegraph.requests.track import Track
from dit_cachegraph.retention.table import RequestTable

MAX_TRACKS = 16
OVER = "its state was freed after what was taken for the last step"


def begin_image(table: RequestTable, track: Track) -> None:
    """The first step of an image is done. Those before it under its conditioning have most likely
    ended."""
    conditioning = track.conditioning
    for earlier in list(conditioning.tracks):
        if earlier.is_complete:
            table.remove(earlier)
        elif looks_whole(earlier.trajectory):
            table.ends.learn(earlier.trajectory)
            _complete(table, earlier)
    track.first_number = table.next_number()
    _end_namesakes(table, track)
    assert track.last_call is not None
    called = table.held.called_with(track.last_call.latents)
    others = [other for other in called if _are_of_one_step(track, other)]
    track.passes = others[0].passes if others else []
    track.passes.append(track)
    conditioning.tracks.append(track)
    for affected in {one.conditioning for one in track.passes}:
        _free_earlier(table, affected)
    while len(conditioning.tracks) > MAX_TRACKS:
        table.remove(conditioning.tracks[0])


def _end_namesakes(table: RequestTable, track: Track) -> None:
    """A server may give each image a key, under a prompt that lives on. An image by another name
    may still be under way, unless one has begun and this one begins without it."""
    named = track.conditioning.namesakes
    if named is None:
        return
    begun = named.begin(track.conditioning.request_key, track.first_number)
    for other in list(named.recent):
        is_left = other.last_number < begun and not other.conditioning.may_go_on
        if other.conditioning is not track.conditioning and is_left:
            named.recent.pop(other, None)
            if not other.is_complete and looks_whole(other.trajectory):
                table.ends.learn(other.trajectory)
                _complete(table, other)


def _are_of_one_step(track: Track, other: Track) -> bool:
    """True for two passes of guidance, which were called with one latents object: they differ in
    their conditioning, or in the trunk."""
    call, others = track.last_call, other.last_call
    if call is None or others is None:
        return False
    is_of_one_name = other.conditioning.request_key == track.conditioning.request_key
    are_apart = other.conditioning is not track.conditioning or others.signature != call.signature
    return is_of_one_name and are_apart and other.trajectory.last == track.trajectory.last


def _free_earlier(table: RequestTable, conditioning: Conditioning[Track]) -> None:
    for earlier in conditioning.tracks[:-1]:
        if not _is_of_another_request(earlier):
            if earlier.state is not None:
                earlier.log_image()
            table.held.release(earlier)
            earlier.lost = NEXT_BEGAN  # Also where nothing was held: most likely it was given up.


def _is_of_another_request(track: Track) -> bool:
    """True if a companion has state of its own and is the last under its conditioning."""
    return any(c.state is not None and c.conditioning.tracks[-1:] == [c] for c in track.companions)


def end_step(table: RequestTable, track: Track, common: CommonSettings) -> None:
    """What is freed at the end of a step."""
    track.last_number = table.next_number()
    named = track.conditioning.namesakes
    if named is not None:
        named.recent[track] = None
        table.note_held(track.conditioning)
    for companion in track.companions:
        table.held.note_called(companion, track.last_seconds)
    _remove_twins(table, track)
    if _was_last(table, track, common.num_inference_steps):
        for companion in track.companions:
            if _has_fallen_behind(companion, track):
                _complete(table, companion)
        _complete(table, track)
    if common.max_state_bytes is not None:
        _evict(table, common.max_state_bytes)


def _was_last(table: RequestTable, track: Track, num_steps: int | None) -> bool:
    """By the number of steps that was told, until there are more; else by the images before, of
    which one that was left near its end looks whole."""
    num_calls = track.trajectory.num_calls
    if num_steps is not None and num_calls <= num_steps:
        return num_calls == num_steps
    return table.ends.are_reached(track.trajectory)


def _remove_twins(table: RequestTable, track: Track) -> None:
    """Remove an image that this one has come up with: one that was aborted at this very point, and
    is drawn again from the same noise."""
    call = track.last_call
    for other in list(track.conditioning.tracks):
        if other is track or call is None or other.last_call is None:
            continue
        is_twin = other.last_call.signature == call.signature and are_twins(track, other)
        if is_twin and not _is_of_another_request(other):
            table.remove(other)


def _complete(table: RequestTable, track: Track) -> None:
    """The image is over, as far as one knows."""
    track.log_image()
    track.is_complete = True
    table.free(track, OVER)


def _has_fallen_behind(companion: Track, track: Track) -> bool:
    """True for a guidance branch that ended half-way: it saw neither this step nor the last."""
    trajectory = track.trajectory
    return companion.trajectory.last not in (trajectory.last, trajectory.before_last)


def expire(table: RequestTable, max_idle_seconds: float | None) -> None:
    """Free what no call has come for. A step that is under way is no time of idleness, so it is
    asked when one begins."""
    if max_idle_seconds is not None:
        now = time.monotonic()
        for track in table.held.least_recent():
            if now - track.last_seconds <= max_idle_seconds:
                break
            track.log_image()
            table.num_expired += 1
            table.free(track, f"its state was freed after max_idle_seconds={max_idle_seconds:g}")


def _evict(table: RequestTable, max_state_bytes: int) -> None:
    if table.held.nbytes <= max_state_bytes:
        return
    for track in table.held.least_recent():
        table.num_evicted += 1
        table.free(track, f"its state was freed under max_state_bytes={max_state_bytes}")
        if table.held.nbytes <= max_state_bytes:
            return
