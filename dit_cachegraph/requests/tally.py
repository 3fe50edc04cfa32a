"""The line about an image: it tells a user, unasked, whether the cache did anything."""

import logging

from dit_cachegraph.requests.track import Tally, Track

log = logging.getLogger("dit_cachegraph")


def log_image(track: Track) -> None:
    """At the last step of an image where that is known, else when its state goes, or the next image
    begins."""
    tally = track.tally
    num_steps = tally.num_hits + tally.num_computed
    if num_steps == 0:
        return
    share = tally.num_blocks_run / max(tally.num_blocks, 1)
    track.tally = Tally()
    text = f"image of request {track.label}: {tally.num_hits} of {num_steps} steps reused, "
    text += f"{share:.0%} of the block work run"
    if tally.num_hits == 0 and tally.smallest_diff is not None and tally.threshold is not None:
        text += f"; smallest diff {tally.smallest_diff:.3g}, threshold {tally.threshold:g}"
    log.info("%s", text)
