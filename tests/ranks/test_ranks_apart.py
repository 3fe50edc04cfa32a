"""Ranks of which one is treated otherwise: all compute, are one again after it, and never hang."""

from pathlib import Path

import pytest

from ranks.launch import SECONDS, Seen, run_ranks, unexpected
from ranks.schedules import OTHERWISE

NUM_QUICK, NUM_ALL, NUM_A_LAUNCH = 16, 500, 250


def run_all(numbers: range, folder: Path, seconds: int = SECONDS) -> list[list[Seen]]:
    """What each rank saw of each schedule."""
    ranks = run_ranks([{"schedules": list(numbers)}], folder, seconds=seconds)[0]
    assert all(unexpected(rank["refusals"]) == [] for rank in ranks)
    return [list(pair) for pair in zip(*(rank["schedules"] for rank in ranks), strict=True)]


WHY = (
    "ranks 0 and 1 have other settings",
    "ranks 0 and 1 are at step",
    "ranks 0 and 1 saw other steps before this one",
    "ranks are at other timesteps",
    "ranks compare other controls",
)


def check(schedules: list[list[Seen]]) -> None:
    """At each step all ranks skipped the same blocks: none where one was treated otherwise. But
    another image on one of them is one that goes on when it comes again, and so is one by another
    name; and a control that had been written to on all of them is compared."""
    num_hits, reasons = 0, set()
    for first, *others in schedules:
        assert all(other["events"] == first["events"] for other in others)
        goes_on = {"control"}
        for event, skipped in zip(first["events"], first["skipped"], strict=True):
            assert all(of_rank == skipped[0] for of_rank in skipped), (event, skipped)
            num_hits += skipped[0] != []
            assert skipped[0] == [] or event not in OTHERWISE or event in goes_on, event
            goes_on |= {event} & {"image", "name"}
        reasons.update(first["reasons"])
    for why in WHY:
        assert any(reason.startswith(why) for reason in reasons), why
    assert num_hits > 2 * len(schedules)


def test_one_rank_that_is_treated_otherwise_makes_all_compute(tmp_path: Path) -> None:
    check(run_all(range(NUM_QUICK), tmp_path))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("start", range(0, NUM_ALL, NUM_A_LAUNCH))
def test_no_schedule_hangs(tmp_path: Path, start: int) -> None:
    check(run_all(range(start, start + NUM_A_LAUNCH), tmp_path, seconds=560))
