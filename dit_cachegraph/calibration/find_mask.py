"""The best fixed schedule for a number of computed steps, by dynamic programming over the errors
that single reuses made in recorded runs.

    cost(i, j, s)     what a reuse at step s misses where i and j were the last computed steps
    best(c, i, j)     least cost of the steps up to j, c of them computed, the last ones i and j

A first-order forecast needs two computed steps, so a state is a pair of them.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from dit_cachegraph.policy.predictor import Predictor
from dit_cachegraph.policy.recorded import Recorded

MAX_RUN = 8  # reused steps in a row
Costs = npt.NDArray[np.float64]


def reuse_costs(recordings: Sequence[Sequence[Recorded]], predictor: Predictor) -> Costs:
    """[T, T, T], mean over the recordings: the relative error at `s` after computed steps `i < j`,
    squared; infinite where it is not defined."""
    num_steps = min(map(len, recordings))
    costs = np.full((num_steps,) * 3, math.inf)
    for j in range(1, num_steps):
        for i in range(max(0, j - MAX_RUN - 1), j):
            for s in range(j + 1, min(j + 1 + MAX_RUN, num_steps)):
                weights = predictor.weights((i, j), s)
                errors = [_error(r, i, j, s, weights) for r in recordings]
                costs[i, j, s] = sum(error**2 for error in errors) / len(errors)
    return costs


def _error(
    recording: Sequence[Recorded], i: int, j: int, s: int, weights: Sequence[float]
) -> float:
    missed = size = 0.0
    for k, effect in enumerate(recording[s].effects):
        estimate = recording[i].effects[k] * weights[0] + recording[j].effects[k] * weights[1]
        missed += float(torch.linalg.vector_norm(effect - estimate, 1))
        size += float(torch.linalg.vector_norm(recording[s].outs[k], 1))
    return missed / max(size, 1e-30)


def find_masks(costs: Costs) -> dict[int, tuple[int, ...]]:
    """For each number of computed steps the mask of least cost; the first two always compute."""
    num_steps = len(costs)
    if num_steps < 3:  # noqa: PLR2004  # nothing can be reused
        return {num_steps: (1,) * num_steps}
    runs = _run_costs(costs)
    best: dict[tuple[int, int, int], tuple[float, tuple[int, ...]]] = {(2, 0, 1): (0.0, (0, 1))}
    found: dict[int, tuple[float, tuple[int, ...]]] = {}
    for j in range(1, num_steps):
        for (count, i, last), (cost, path) in [item for item in best.items() if item[0][2] == j]:
            whole = cost + runs[i, last, num_steps]
            if whole < found.get(count, (math.inf, ()))[0]:
                found[count] = (whole, path)
            for k in range(last + 1, min(last + 2 + MAX_RUN, num_steps)):
                key, total = (count + 1, last, k), cost + runs[i, last, k]
                if total < best.get(key, (math.inf, ()))[0]:
                    best[key] = (total, (*path, k))
    return {count: _mask(path, num_steps) for count, (_, path) in sorted(found.items())}


def _run_costs(costs: Costs) -> Costs:
    """[T, T, T + 1]: the cost of reusing every step between `j` and `k`, after computed `i, j`."""
    num_steps = len(costs)
    runs = np.full((num_steps, num_steps, num_steps + 1), math.inf)
    for j in range(1, num_steps):
        for i in range(j):
            total = 0.0
            for k in range(j + 1, min(j + 2 + MAX_RUN, num_steps + 1)):
                runs[i, j, k] = total
                total += costs[i, j, k] if k < num_steps else 0.0
    return runs


def _mask(path: Sequence[int], num_steps: int) -> tuple[int, ...]:
    return tuple(int(step in path) for step in range(num_steps))
