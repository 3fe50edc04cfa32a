"""Steps and block work, counted: of a model for ever, of an image until it is over. Its line tells
a user, unasked, whether the cache did anything."""

from dataclasses import dataclass


@dataclass(slots=True)
class Tally:
    """`smallest_diff` is that of all regions and steps, beside the `threshold` it was held to."""

    num_hits: int = 0
    num_computed: int = 0
    num_blocks: int = 0
    num_blocks_run: int = 0
    smallest_diff: float | None = None
    threshold: float | None = None
    seconds: float = 0.0

    def add(self, is_hit: bool, num_blocks: int, num_skipped: int, seconds: float) -> None:
        """Count a step of a trunk of so many blocks, that took the host so many seconds."""
        self.num_hits += is_hit
        self.num_computed += not is_hit
        self.num_blocks += num_blocks
        self.num_blocks_run += num_blocks - num_skipped
        self.seconds += seconds

    def note_diff(self, smallest_diff: float | None, threshold: float | None) -> None:
        """Note what a step was held to, and the smallest diff of its regions if one is finite."""
        self.threshold = threshold
        if smallest_diff is not None:
            known = self.smallest_diff
            self.smallest_diff = smallest_diff if known is None else min(smallest_diff, known)

    def absorb(self, other: "Tally") -> None:
        """Count what another one counted as well."""
        self.num_hits += other.num_hits
        self.num_computed += other.num_computed
        self.num_blocks += other.num_blocks
        self.num_blocks_run += other.num_blocks_run
        self.seconds += other.seconds

    def line(self, label: str) -> str:
        """What is said of an image."""
        num_steps = self.num_hits + self.num_computed
        share = self.num_blocks_run / max(self.num_blocks, 1)
        text = f"image of request {label}: {self.num_hits} of {num_steps} steps reused, "
        text += f"{share:.0%} of the block work run"
        if self.num_hits == 0 and self.smallest_diff is not None and self.threshold is not None:
            text += f"; smallest diff {self.smallest_diff:.3g}, threshold {self.threshold:g}"
        return text
