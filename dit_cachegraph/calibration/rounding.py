"""How far two computed steps are apart whose streams differ by a rounding: below that a tolerance
asks for more than computing the step anew would give."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from dit_cachegraph.config import resolve
from dit_cachegraph.policy.recorded import Recorded


def rounding_noise(recordings: Sequence[Sequence[Recorded]]) -> float | None:
    """The mean over the steps that were computed twice, as a share of the streams; None where none
    was."""
    steps = [step for recording in recordings for step in recording]
    shares = [_apart(s.rerounded, s.outs) for s in steps if s.rerounded is not None]
    return sum(shares) / len(shares) if shares else None


def _apart(nearby: Sequence[Tensor], outs: Sequence[Tensor]) -> float:
    missed = sum(float((a - b).abs().sum()) for a, b in zip(nearby, outs, strict=True))
    return missed / max(sum(float(b.abs().sum()) for b in outs), 1e-30)


def below_noise(settings: Mapping[str, object], noise: float | None) -> str | None:
    """One sentence where the option of a rule that trades quality for speed is below the noise."""
    option = resolve(settings).rule.threshold_option
    threshold = None if option is None else settings.get(option)
    if noise is None or not isinstance(threshold, float | int) or threshold >= noise:
        return None
    return (
        f"{option}={threshold:.2g} is below the noise of the model: two computed steps whose "
        f"streams differ by a rounding are {noise:.2g} apart"
    )
