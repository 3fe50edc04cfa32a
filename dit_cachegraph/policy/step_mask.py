"""Masks of which steps compute, by name or by bins: what `steps_computation_mask` takes.

    steps_mask(mask_policy="fast")                             1111110100010000100000100001
    steps_mask(compute_bins=(2, 1), cache_bins=(1, 2), total_steps=6)                110101

At 28 and 50 steps the named ones are cache-dit's tables. At any other number the table of 28 is
resized: the same share of the steps computes, the first of them in a row as there, and no run of
reused steps is longer in proportion (where there are too few steps for that, it is a single one).
"""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from dit_cachegraph.exc import InvalidConfig
from dit_cachegraph.policy.checks import MASK_POLICIES, check_choice, check_int

Bins = tuple[int, ...]

# Runs of computed and of reused steps, taking turns.
TABLES: Mapping[str, Mapping[int, Bins]] = MappingProxyType(
    {
        "slow": {
            28: (8, 1, 3, 2, 3, 2, 2, 2, 1, 3, 1),
            50: (22, 2, 5, 3, 5, 3, 3, 3, 2, 1, 1),
        },
        "medium": {
            28: (6, 1, 2, 3, 2, 3, 2, 3, 2, 3, 1),
            50: (16, 2, 3, 5, 3, 5, 3, 5, 3, 4, 1),
        },
        "fast": {
            28: (6, 1, 1, 3, 1, 4, 1, 5, 1, 4, 1),
            50: (11, 2, 2, 5, 2, 7, 2, 9, 2, 7, 1),
        },
        "ultra": {
            28: (4, 2, 1, 5, 1, 6, 1, 7, 1),
            50: (7, 3, 2, 9, 2, 11, 2, 13, 1),
        },
    }
)
RESIZED = 28


def steps_mask(
    compute_bins: Sequence[int] | None = None,
    cache_bins: Sequence[int] | None = None,
    total_steps: int | None = None,
    mask_policy: str = "medium",
) -> tuple[int, ...]:
    """One 1 (compute) or 0 (reuse) a step: by `mask_policy` "slow", "medium", "fast" or "ultra", or
    by bins, which take turns from `compute_bins` on. The first step and the last one compute.
    `total_steps` is 28 for a name, and the sum of the bins for those, where it isn't given.

    Raises:
        InvalidConfig: an unknown name, only one kind of bins, or bins that do not add up.
    """
    check_int("total_steps", total_steps, at_least=1, none_is_ok=True)
    if compute_bins is not None or cache_bins is not None:
        return _of_bins(compute_bins, cache_bins, total_steps)
    check_choice("mask_policy", mask_policy, MASK_POLICIES)
    table, num_steps = TABLES[mask_policy], RESIZED if total_steps is None else total_steps
    return _laid_out(table.get(num_steps) or _resized(table[RESIZED], num_steps))


def _of_bins(
    compute_bins: Sequence[int] | None, cache_bins: Sequence[int] | None, total_steps: int | None
) -> tuple[int, ...]:
    if compute_bins is None or cache_bins is None:
        raise InvalidConfig("compute_bins and cache_bins make a mask together: give both")
    for name, bins in (("compute_bins", compute_bins), ("cache_bins", cache_bins)):
        if not isinstance(bins, Sequence):
            raise InvalidConfig(f"{name} must be a sequence of numbers of steps, got {bins!r}")
        for size in bins:
            check_int(name, size, at_least=1)
    if not 0 <= len(compute_bins) - len(cache_bins) <= 1:
        raise InvalidConfig(
            "compute_bins and cache_bins take turns from a computed one on: "
            f"{len(compute_bins)} and {len(cache_bins)} of them can't"
        )
    if total_steps not in (None, sum(compute_bins) + sum(cache_bins)):
        raise InvalidConfig(
            f"compute_bins and cache_bins add up to {sum(compute_bins) + sum(cache_bins)} steps, "
            f"and total_steps is {total_steps}"
        )
    bins = [0] * (len(compute_bins) + len(cache_bins))
    bins[::2], bins[1::2] = compute_bins, cache_bins
    return (*_laid_out(bins)[:-1], 1)


def _laid_out(bins: Sequence[int]) -> tuple[int, ...]:
    return tuple(1 - i % 2 for i, size in enumerate(bins) for _ in range(size))


def _resized(table: Bins, num_steps: int) -> Bins:
    """The same share of computed steps and the same growth of the runs, for another number."""
    compute, cache = table[::2], table[1::2]
    longest = max(1, max(cache) * num_steps // sum(table))
    num_reused = round(num_steps * sum(cache) / sum(table))
    while True:
        num_runs = max(min(len(cache), num_reused), math.ceil(num_reused / longest))
        if num_reused + num_runs + 1 <= num_steps:
            break
        num_reused -= 1
    tail = _sampled(compute[1:], num_runs)
    bins = [0] * (2 * num_runs + 1)
    bins[::2] = _apportioned(num_steps - num_reused, (compute[0], *tail), num_steps)
    bins[1::2] = _apportioned(num_reused, _sampled(cache, num_runs), longest)
    return tuple(bins)


def _sampled(sizes: Bins, count: int) -> Bins:
    """`count` of the sizes, evenly along them."""
    return tuple(sizes[(2 * i + 1) * len(sizes) // (2 * count)] for i in range(count))


def _apportioned(total: int, weights: Bins, at_most: int) -> list[int]:
    """`total` in parts of at least 1 and at most `at_most`, as near as can be to the weights."""
    parts = [1] * len(weights)
    for _ in range(total - len(parts)):
        open_parts = [i for i, part in enumerate(parts) if part < at_most]
        behind = max(open_parts, key=lambda i: weights[i] * total / sum(weights) - parts[i])
        parts[behind] += 1
    return parts
