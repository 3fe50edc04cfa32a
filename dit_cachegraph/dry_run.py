"""What thresholds would have reused, saved and lost, from the recordings of a dry run."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, is_dataclass

from dit_cachegraph.config import Settings
from dit_cachegraph.policy.recorded import Recorded
from dit_cachegraph.policy.rule import Rule
from dit_cachegraph.simulate import simulate


@dataclass(frozen=True, slots=True)
class Trial:
    """One threshold over all recorded images. The errors are of single reused steps, as a share of
    the streams; what they do to the steps after them is not in it."""

    threshold: float
    num_reused: int
    num_steps: int
    share_of_blocks_saved: float
    mean_error: float
    largest_error: float

    def __str__(self) -> str:
        return (
            f"threshold {self.threshold:g}: {self.num_reused} of {self.num_steps} steps reused, "
            f"{self.share_of_blocks_saved:.0%} of the block work saved, a reused step missed "
            f"{self.mean_error:.1%} of its streams ({self.largest_error:.1%} at most)"
        )


def with_threshold(rule: Rule, threshold: float) -> Rule:
    """The rule with another value of the option that trades quality for speed."""
    assert rule.threshold_option is not None and is_dataclass(rule), "checked with the settings"
    changed: Rule = type(rule)(**{**asdict(rule), rule.threshold_option: threshold})
    return changed


def trials(
    settings: Settings,
    recordings: Sequence[Sequence[Recorded]],
    *,
    num_blocks: int,
    num_skipped: int,
) -> tuple[Trial, ...]:
    """One for each of the thresholds of `dry_run`; `num_skipped` of the blocks by a hit."""
    thresholds = settings.common.dry_run or ()
    return tuple(
        _trial(settings, threshold, recordings, num_skipped / num_blocks)
        for threshold in thresholds
    )


def _trial(
    settings: Settings,
    threshold: float,
    recordings: Sequence[Sequence[Recorded]],
    share_skipped: float,
) -> Trial:
    rule = with_threshold(settings.rule, threshold)
    told = settings.common.num_inference_steps
    ran = [simulate(rule, settings.predictor, recording, told) for recording in recordings]
    errors = [error for run in ran for error in run.errors if error is not None]
    num_reused, num_steps = len(errors), sum(len(run.decisions) for run in ran)
    return Trial(
        threshold=threshold,
        num_reused=num_reused,
        num_steps=num_steps,
        share_of_blocks_saved=share_skipped * num_reused / max(num_steps, 1),
        mean_error=sum(errors) / max(len(errors), 1),
        largest_error=max(errors, default=0.0),
    )
