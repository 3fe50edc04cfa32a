"""`bench.parallel`: what it compares and refuses, and one small run of it."""

import sys
from pathlib import Path

import numpy as np
import pytest

# The bench is no installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.parallel import __main__ as parallel
from bench.parallel.ranks import HITS, MASK, Drawn
from bench.speed.engines import CACHEDIT, PLAIN
from bench.speed.flux import CPU, NUM_IMAGE_STEPS, Depth

ONES = tuple(np.ones(4, np.float32) for _ in MASK)


def drawn(scale: float = 1.0, hits: tuple[int, ...] = HITS, alone: tuple[int, ...] = HITS) -> Drawn:
    return Drawn(ONES, tuple(np.float32(scale) * step for step in ONES), alone, hits, ())


def test_the_worst_step_of_any_rank_is_told() -> None:
    assert parallel.check(CACHEDIT, [drawn(1 + 2e-5), drawn(1 + 5e-5)]) == pytest.approx(5e-5, 0.1)
    assert parallel.check(PLAIN, [drawn(hits=(), alone=()), drawn(hits=(), alone=())]) == 0


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (drawn(1.01), "cachedit on 2 ranks is 0.01 off one process"),
        (drawn(float("nan")), "cachedit on 2 ranks is nan off one process"),
        (drawn(hits=HITS[1:]), "was to reuse steps .* rank 1 did"),
        (drawn(alone=()), r"and one process \(\)"),
    ],
)
def test_other_outputs_and_other_decisions_end_it(other: Drawn, why: str) -> None:
    with pytest.raises(RuntimeError, match=why):
        parallel.check(CACHEDIT, [drawn(), other])


def test_steps_are_told_apart_by_what_was_reused() -> None:
    seconds = [3.0 if computes else 1.0 for computes in MASK]
    rounds = {PLAIN: [[2.0] * NUM_IMAGE_STEPS], CACHEDIT: [seconds]}
    computed, hit, image = parallel.ratios(rounds)
    assert (computed.median, hit.median) == (1.5, 0.5)
    assert image.median == pytest.approx(sum(seconds) / (2 * NUM_IMAGE_STEPS))


@pytest.mark.parametrize(
    ("arguments", "why"),
    [(["--rounds", "0"], "a count of at least 1"), (["--preset", "host"], "splits heads")],
)
def test_what_cannot_be_measured_is_refused(
    arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parallel.main(arguments)
    assert why in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.e2e
def test_two_ranks_draw_as_one_process() -> None:
    found = parallel.measure(CPU, Depth(1, 2), "eager", num_rounds=1)
    plain, computed, hit = (sum(of.values()) for of in found.collectives.values())
    assert (plain, computed, hit) == (4 * 3 + 1, 4 * 3 + 1 + 2, 4 + 1 + 2)
    assert "to compare" in parallel.as_text(found)
