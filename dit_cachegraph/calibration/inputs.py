"""What a calibration draws: seeds or prompts to search on, and others to check on."""

from collections.abc import Sequence

from dit_cachegraph.calibration.bench import MAX_RUNS
from dit_cachegraph.exc import InvalidConfig
from dit_cachegraph.policy.checks import check_sequence

Inputs = Sequence[object]


def check_inputs(inputs: Inputs, holdout: Inputs, runs_a_holdout: int) -> None:
    """Raises: InvalidConfig, for too many or too few of them, one that can't be told from others,
    or one of the holdout that is searched on."""
    num_needed = 4 * _number_of("inputs", inputs) + runs_a_holdout * _number_of("holdout", holdout)
    if not inputs or not holdout or num_needed > MAX_RUNS:
        raise InvalidConfig(
            f"calibrate draws at most {MAX_RUNS} times, and needs one input and one of the holdout "
            f"or more: {len(inputs)} and {len(holdout)} of them would take {num_needed} runs at "
            "least. A run may draw several pictures at once"
        )
    searched = set(inputs)
    both = [one for one in holdout if one in searched]
    if both:
        raise InvalidConfig(
            f"holdout is for pictures that the search has not seen, and {both[0]!r} is one of the "
            "inputs too: give others"
        )


def _number_of(name: str, given: Inputs) -> int:
    check_sequence(name, given)
    try:
        hash(tuple(given))
    except TypeError as error:
        raise InvalidConfig(
            f"{name}: what was drawn of each is kept in a dict ({error}): where a run draws "
            "several prompts at once, give a tuple of them"
        ) from None
    return len(given)
