"""What ranks tell of themselves: the same numbers in every process, and what differences say."""

import os
import subprocess
import sys

import pytest
import torch

from dit_cachegraph.ops import host_numbers
from dit_cachegraph.policy.rules.dbcache import DBCache
from dit_cachegraph.ranks.group import others_on_axes
from dit_cachegraph.ranks.standing import HEADER_SIZE, Standing, digest, header_of, why_apart

OF_ONE = Standing((DBCache(),), [("image", 3)], [None], 4)


def headers(*standings: Standing) -> torch.Tensor:
    """As they arrive: float32."""
    return torch.tensor([header_of(rank, one) for rank, one in enumerate(standings)])


def test_ranks_that_stand_alike_decide_alike() -> None:
    again = Standing((DBCache(),), [("image", 3)], [None], 4)
    gathered = headers(OF_ONE, again, again)
    assert gathered.shape == (3, HEADER_SIZE)
    assert why_apart(gathered) is None


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"settings": (DBCache(max_warmup_steps=7),)}, "have other settings"),
        ({"step": 0, "images": []}, "are at step 4 and step 0 of their images"),
        ({"images": [("image", 4)]}, "saw other steps before this one"),
        ({"usable": ["nothing kept"]}, "hold other state"),
    ],
)
def test_the_first_difference_is_named_with_its_ranks(other: dict[str, object], why: str) -> None:
    gathered = headers(OF_ONE, OF_ONE, OF_ONE._replace(**other))
    assert why_apart(gathered) == f"ranks 0 and 2 {why}"


def test_a_digest_is_the_same_in_every_process() -> None:
    """Python's own hashes of strings are not."""
    code = "from dit_cachegraph.ranks.standing import digest; print(digest(('text', 1.5, None)))"
    told = {
        subprocess.check_output(
            [sys.executable, "-c", code], text=True, env=os.environ | {"PYTHONHASHSEED": s}
        )
        for s in ("1", "2")
    }
    assert {int(line) for line in told} == {digest(("text", 1.5, None))}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_digests_are_exact_as_float32(dtype: torch.dtype) -> None:
    """Also where new tensors are of another dtype by default."""
    told, before = header_of(0, OF_ONE), torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        assert host_numbers(told).tolist() == told
    finally:
        torch.set_default_dtype(before)
    assert len({digest(i) for i in range(1000)}) == 1000


@pytest.mark.parametrize(
    ("rank", "axes", "others"),
    [
        (1, [[0, 1, 2]], {0, 2}),
        (5, [[4, 5], [5, 7]], {4, 6, 7}),
        (3, [[2, 3], [1, 3], [3, 7]], {0, 1, 2, 4, 5, 6, 7}),
    ],
)
def test_the_others_are_all_of_the_mesh(rank: int, axes: list[list[int]], others: set[int]) -> None:
    assert others_on_axes(rank, axes) == others
