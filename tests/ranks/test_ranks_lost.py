"""A rank that leaves in the middle of a step: each of the others ends with an error that names it,
within the group's timeout, and nobody waits for ever. The processes are real."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ranks.launch import Seen

WORKER = Path(__file__).with_name("leaving.py")
NUM_RANKS = 3
SECONDS = 150
PATIENCE_SECONDS = 10


def run_leaving(
    cases: str, folder: Path, lost: int = NUM_RANKS - 1, store: str | None = None
) -> list[dict[str, list[Seen]]]:
    """What each rank saw of each case, but for the one that is `lost` at last. Nobody ends those
    that are left, as torchrun would."""
    left = [rank for rank in range(NUM_RANKS) if rank != lost]
    env = os.environ | {"WORLD_SIZE": str(NUM_RANKS)}
    command = [
        sys.executable,
        str(WORKER),
        str(folder),
        cases,
        store or f"file://{folder / 'store'}",
    ]
    ranks = [
        subprocess.Popen(command, env=env | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(NUM_RANKS)
    ]
    until, codes = time.monotonic() + SECONDS, [None] * NUM_RANKS
    try:
        # To ask is to let go of one that was killed.
        while None in [codes[k] for k in left] and time.monotonic() < until:
            time.sleep(0.05)
            codes = [rank.poll() for rank in ranks]
        assert [codes[k] for k in left] == [0] * len(left), "nobody hangs"
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    return [json.loads((folder / f"rank{k}.json").read_text()) for k in left]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[Seen]]]:
    return run_leaving("alike,alone,killed", tmp_path_factory.mktemp("leaving"))


def test_ranks_that_raise_alike_go_on(seen: list[dict[str, list[Seen]]]) -> None:
    for rank in seen:
        assert [step["kind"] for step in rank["alike"]] == ["ValueError", None, None]


def test_a_rank_that_raises_is_named_to_those_that_wait_for_it(
    seen: list[dict[str, list[Seen]]],
) -> None:
    waited, other, again = seen[0]["alone"]
    assert waited["kind"] == other["kind"] == again["kind"] == "RankLost"
    assert waited["said"] == other["said"] == again["said"]
    assert "rank 1 raised in its call 5 (ValueError: the prompt is empty)" in waited["said"]
    assert "End all ranks" in waited["said"]
    assert waited["seconds"] < 10 + PATIENCE_SECONDS + 5


def test_a_rank_that_raised_alone_does_not_go_on_alone(seen: list[dict[str, list[Seen]]]) -> None:
    """Its next step would meet the middle of theirs, also one of another model."""
    own, other, again = seen[1]["alone"]
    assert (own["kind"], own["said"]) == ("ValueError", "the prompt is empty")
    for later in (other, again):
        assert later["kind"] == "RankLost"
        assert "this rank left its call 5 by an error, and rank 0 didn't" in later["said"]


def test_a_rank_that_dies_is_named_at_once(seen: list[dict[str, list[Seen]]]) -> None:
    for rank in seen:
        (step,) = rank["killed"]
        assert step["kind"] == "RankLost"
        assert f"rank {NUM_RANKS - 1} is gone (process " in step["said"]
        assert "at its call 3, in the model" in step["said"]
        assert step["seconds"] < PATIENCE_SECONDS + 5, "the group's timeout is 60 s"


@pytest.mark.slow
def test_a_rank_that_is_stopped_is_named_after_the_timeout(tmp_path: Path) -> None:
    for rank in run_leaving("stopped", tmp_path):
        (step,) = rank["stopped"]
        assert step["kind"] == "RankLost"
        assert f"rank {NUM_RANKS - 1} doesn't answer (process " in step["said"]
        others = [f"rank {k} doesn't answer" for k in range(NUM_RANKS - 1)]
        assert not any(other in step["said"] for other in others)


@pytest.mark.slow
def test_a_rank_that_runs_uncached_is_named_with_the_cause(tmp_path: Path) -> None:
    """Its blocks wait for all, and the others gather."""
    first, second = run_leaving("gradients", tmp_path)
    assert first["gradients"][0]["kind"] == "RankLost"
    said = first["gradients"][0]["said"]
    assert "what it compiled last runs uncached: it was compiled with gradients on" in said
    assert second["gradients"][0]["kind"] == "RuntimeError"


@pytest.mark.slow
def test_rank_0_may_take_the_store_with_it(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        store = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    for rank in run_leaving("without 0", tmp_path, lost=0, store=store):
        (step,) = rank["without 0"]
        assert step["kind"] == "RankLost"
        assert "rank 0 is gone, or torchrun" in step["said"]
