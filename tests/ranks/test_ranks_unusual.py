"""Ranks in a run that isn't usual compute together, or each ends with a sentence."""

import pytest

from ranks.launch import Seen, run_ranks
from ranks.unusual import OPTIONS

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(300)]
NUM_RANKS = 3
Told = list[list[object]]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[Seen]:
    """What each rank saw."""
    folder = tmp_path_factory.mktemp("unusual")
    return run_ranks([{"unusual": str(folder)}], folder, NUM_RANKS)[0]


def hits(told: Told) -> str:
    return "".join("H" if hit else "." for hit, _ in told)


def test_options_of_one_rank_alone_make_all_compute(seen: list[Seen]) -> None:
    first, *others = [rank["options"] for rank in seen]
    assert all(other == first for other in others)
    assert list(first) == [*map(str, OPTIONS), "request"]
    for options, told in first.items():
        alone = {reason for _, reason in told[:2]}
        assert alone == {"ranks 0 and 1 have other settings"}, options
        assert hits(told[:2]) == ".." and told[3][0], options


def test_ranks_under_other_grad_modes_decide_as_one(seen: list[Seen]) -> None:
    first, *others = [rank["modes"]["steps"] for rank in seen]
    assert all(other == first for other in others)
    assert hits(first) == "." + "H" * 7


def test_ranks_outside_of_the_group_are_not_waited_for(seen: list[Seen]) -> None:
    first, second, third = [rank["part"]["steps"] for rank in seen]
    assert first == second and third == []
    assert hits(first) == ".HH.H"
    assert str(first[3][1]).startswith("ranks 0 and 1 are at step 3 and step 0")


def test_what_is_freed_on_one_rank_alone_is_told_as_that(seen: list[Seen]) -> None:
    first, *others = [rank["memory"]["steps"] for rank in seen]
    assert all(other == first for other in others)
    assert hits(first) == ".HH.H"
    assert first[3][1] == "ranks 0 and 1 hold other state"


def test_what_is_compiled_goes_on_with_a_group_of_the_same_ranks(seen: list[Seen]) -> None:
    for rank in seen:
        assert hits(rank["anew"]["before"]) == ".H"
        assert hits(rank["anew"]["same"]) == "HH"


def test_a_group_that_is_gone_or_of_other_ranks_is_an_error_on_each(seen: list[Seen]) -> None:
    for k, rank in enumerate(seen):
        ((_, gone),), ((_, others),) = rank["anew"]["destroyed"], rank["anew"]["others"]
        assert "process group '0', which was destroyed: make it anew" in gone
        assert f"this was rank {k} of [0, 1, 2], and is rank {(k + 1) % 3} of [0, 1, 2]" in others
