"""Between decision and deed: where ranks that share a sample will agree. One process agrees with
itself, so all of it is the identity; what a decision is made of passes here and nowhere else."""

from dit_cachegraph.policy.rule import Decision
from dit_cachegraph.runtime.reading import Reading


def agreed_reading(reading: Reading) -> Reading:
    """The numbers that all ranks decide by."""
    return reading


def agreed_reason(reason: str | None) -> str | None:
    """Why all ranks compute, whatever their rule says."""
    return reason


def agreed_decision(decision: Decision) -> Decision:
    """What all ranks do."""
    return decision
