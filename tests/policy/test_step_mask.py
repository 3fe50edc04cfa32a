"""Masks by name and by bins: cache-dit's tables, what holds at any other number of steps, and what
is refused with which sentence."""

from itertools import groupby

import pytest

import dit_cachegraph as dc
from dit_cachegraph.config import resolve

# Made with cache-dit 1.5.3.
TABLES = {
    (28, "slow"): "1111111101110011100110010001",
    (28, "medium"): "1111110110001100011000110001",
    (28, "fast"): "1111110100010000100000100001",
    (28, "ultra"): "1111001000001000000100000001",
    (50, "slow"): "11111111111111111111110011111000111110001110001101",
    (50, "medium"): "11111111111111110011100000111000001110000011100001",
    (50, "fast"): "11111111111001100000110000000110000000001100000001",
    (50, "ultra"): "11111110001100000000011000000000001100000000000001",
}
POLICIES = ("slow", "medium", "fast", "ultra")


def text_of(mask) -> str:
    return "".join(map(str, mask))


def longest_reuse(mask) -> int:
    return max((len(list(run)) for value, run in groupby(mask) if value == 0), default=0)


@pytest.mark.parametrize(("num_steps", "policy"), TABLES, ids=str)
def test_the_tables(num_steps, policy):
    mask = dc.steps_mask(total_steps=num_steps, mask_policy=policy)
    assert text_of(mask) == TABLES[num_steps, policy]


def test_the_defaults_are_medium_at_28_steps():
    assert text_of(dc.steps_mask()) == TABLES[28, "medium"]


@pytest.mark.parametrize("policy", POLICIES)
def test_at_any_number_of_steps(policy):
    at_28 = dc.steps_mask(mask_policy=policy)
    share, longest = sum(at_28) / 28, longest_reuse(at_28) / 28
    for num_steps in [n for n in range(1, 201) if n != 50]:
        mask = dc.steps_mask(total_steps=num_steps, mask_policy=policy)
        assert len(mask) == num_steps
        assert mask[0] == mask[-1] == 1
        assert longest_reuse(mask) <= max(1, longest * num_steps)
        # With few steps, runs of one step alone can't reuse as large a share.
        tolerance = 0.5 if num_steps >= 16 else 3
        assert abs(sum(mask) - share * num_steps) <= tolerance + 1e-9, num_steps


@pytest.mark.parametrize("num_steps", [16, 20, 28, 40, 50, 100])
def test_each_policy_computes_less_than_the_one_before(num_steps):
    sums = [sum(dc.steps_mask(total_steps=num_steps, mask_policy=name)) for name in POLICIES]
    assert sums == sorted(set(sums), reverse=True)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_steps_computed_at_first_keep_their_share(policy):
    at_first = len(text_of(dc.steps_mask(mask_policy=policy)).split("0")[0])
    for num_steps in [n for n in range(28, 201) if n != 50]:
        mask = text_of(dc.steps_mask(total_steps=num_steps, mask_policy=policy))
        assert abs(len(mask.split("0")[0]) / num_steps - at_first / 28) < 0.08


def test_few_steps():
    masks = [text_of(dc.steps_mask(total_steps=n, mask_policy="fast")) for n in range(1, 9)]
    assert masks == ["1", "11", "101", "1101", "10101", "110101", "1010101", "11010101"]


BINS = [
    ((2, 1), (1, 2), 6, "110101"),
    ((2, 1, 1), (1, 2), 7, "1101001"),
    ((3,), (), 3, "111"),
    ([1, 1], [3, 1], 6, "100011"),
]


@pytest.mark.parametrize(("compute", "cache", "total", "mask"), BINS, ids=str)
def test_bins_take_turns_and_the_last_step_computes(compute, cache, total, mask):
    made = dc.steps_mask(compute_bins=compute, cache_bins=cache, total_steps=total)
    assert text_of(made) == mask


REFUSED = [
    ({"total_steps": 0}, "total_steps must be an integer of at least 1, got 0"),
    ({"mask_policy": "faster"}, "mask_policy must be one of 'slow', 'medium', 'fast', 'ultra'"),
    ({"compute_bins": (2, 1)}, "give both"),
    ({"cache_bins": (2, 1)}, "give both"),
    (
        {"compute_bins": (2, 1), "cache_bins": (1, 1), "total_steps": 28},
        "add up to 5 steps, and total_steps is 28",
    ),
    ({"compute_bins": 14, "cache_bins": 14}, "compute_bins must be a sequence of numbers of steps"),
    ({"compute_bins": (1,), "cache_bins": (1, 1)}, "1 and 2 of them can't"),
    ({"compute_bins": (1, 1, 1), "cache_bins": (1,)}, "3 and 1 of them can't"),
    ({"compute_bins": (0, 1), "cache_bins": (1,)}, "compute_bins must be an integer of at least 1"),
    ({"compute_bins": (26, 1), "cache_bins": (1.0,)}, "cache_bins must be an integer of at least"),
]


@pytest.mark.parametrize(("asked", "sentence"), REFUSED, ids=str)
def test_refused(asked, sentence):
    with pytest.raises(dc.InvalidConfig, match=sentence):
        dc.steps_mask(**asked)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_name_in_the_place_of_a_mask_says_how_to_make_it(policy):
    with pytest.raises(dc.InvalidConfig) as raised:
        resolve({"steps_computation_mask": policy})
    assert str(raised.value) == (
        "steps_computation_mask takes the mask itself: dit_cachegraph.steps_mask(total_steps=..., "
        f"mask_policy='{policy}') makes it"
    )
    assert resolve({"steps_computation_mask": dc.steps_mask(mask_policy=policy)})
