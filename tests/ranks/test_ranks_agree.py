"""Two ranks that share a sample (gloo on this machine) against one process: the same decisions at
every step, the same outputs, and at a hit the collectives of those blocks alone that ran."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ranks.launch import Seen, run_ranks, unexpected

DEPTH = 4
TO_ALL = "_c10d_functional::all_to_all_single"
TO_RING = "_c10d_functional::all_gather_into_tensor"
REDUCE = "_c10d_functional::all_reduce"
GATHER = "c10d::_allgather_base_"
PAGE = Path(__file__).resolve().parents[2] / "docs/parallel.md"
CASES: dict[str, Seen] = {
    "flux, tokens": {"model": "flux", "parallel": "ulysses", "is_counted": True},
    "flux, ring": {"model": "flux", "parallel": "ring", "is_counted": True},
    "flux, weights": {"model": "flux", "parallel": "weights", "is_counted": True},
    "flux, samples": {"model": "flux", "parallel": "nothing", "is_counted": True},
    "flux, guided by error control": {
        "model": "flux",
        "parallel": "ulysses",
        "num_passes": 2,
        "settings": {"error_tolerance": 1.0},
    },
}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Seen]]:
    """What each rank saw, by case: all run in one launch."""
    found = run_ranks(list(CASES.values()), tmp_path_factory.mktemp("ranks"))
    return dict(zip(CASES, found, strict=True))


def hits(steps: list[Seen]) -> str:
    return "".join("H" if step["hit"] else "." for step in steps)


@pytest.mark.e2e
@pytest.mark.parametrize("case", CASES)
def test_ranks_decide_as_one_process(seen: dict[str, list[Seen]], case: str) -> None:
    for rank in seen[case]:
        assert unexpected(rank["refusals"]) == []
        assert hits(rank["shared"]) == hits(rank["alone"])
        assert {"H", "."} == set(hits(rank["shared"])), "both are tried"
        assert max(rank["errors"]) < 1e-4
        for shared, alone in zip(rank["shared"], rank["alone"], strict=True):
            assert (shared["diff"] is None) == (alone["diff"] is None)
            assert shared["diff"] is None or abs(shared["diff"] - alone["diff"]) < 1e-4


@pytest.mark.e2e
def test_a_hit_waits_for_nobody_in_the_blocks_that_it_skips(seen: dict[str, list[Seen]]) -> None:
    """The first call compiles, and is counted by what that runs too. Attention over all tokens is
    four exchanges a block, or in a ring one gather; the output is gathered after the blocks. Of the
    blocks that are spread over weights, the first adds up attention and MLP of both streams, the
    others once."""
    for case, name, in_block, in_all in (
        ("flux, tokens", TO_ALL, 4, 4 * DEPTH),
        ("flux, ring", TO_RING, 1 + 1, DEPTH + 1),
        ("flux, weights", REDUCE, 4, 4 + DEPTH - 1),
    ):
        for rank in seen[case]:
            for step, counted in list(zip(rank["shared"], rank["collectives"], strict=True))[1:]:
                assert counted[name] == (in_block if step["hit"] else in_all), case


@pytest.mark.e2e
def test_a_step_gathers_what_it_shows_and_what_it_compares(seen: dict[str, list[Seen]]) -> None:
    """The first step has nothing to compare with."""
    for case in ("flux, tokens", "flux, ring", "flux, weights"):
        for rank in seen[case]:
            gathers = [counted[GATHER] for counted in rank["collectives"]]
            assert gathers == [1] + [2] * (len(gathers) - 1), case


@pytest.mark.e2e
def test_ranks_with_samples_of_their_own_wait_for_nobody(seen: dict[str, list[Seen]]) -> None:
    for rank in seen["flux, samples"]:
        assert all(counted == {} for counted in rank["collectives"])


@pytest.mark.slow
@pytest.mark.e2e
def test_the_example_of_the_docs(tmp_path: Path) -> None:
    """It prints what the page says."""
    page = PAGE.read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "ulysses.py").write_text(example)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ran = subprocess.run([*command, tmp_path / "ulysses.py"], capture_output=True, text=True)
    decided = re.compile(r"rank \d: [H.]+")
    assert sorted(decided.findall(ran.stdout)) == decided.findall(page), ran.stderr[-6000:]
