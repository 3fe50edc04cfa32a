"""A group of ranks is gone when its owner destroys it, and may be made anew."""

import gc
import weakref
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from dit_cachegraph import RankLost
from dit_cachegraph.ranks.group import Ranks
from dit_cachegraph.ranks.together import Meetings


def begin(store: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)


def test_a_destroyed_group_lives_on_nowhere(tmp_path: Path) -> None:
    """Its threads would wait for the interpreter while that ends."""
    begin(tmp_path / "store")
    try:
        group = dist.group.WORLD
        assert group is not None
        ranks = Ranks([group.group_name], Meetings())
        assert torch.equal(ranks.gather(torch.arange(3.0)), torch.tensor([[0.0, 1.0, 2.0]]))
        known = weakref.ref(group)
        del group
    finally:
        dist.destroy_process_group()
    gc.collect()
    assert known() is None


def test_a_group_that_is_made_anew_is_taken(tmp_path: Path) -> None:
    """Until then a call ends with a sentence, before anything of it runs."""
    begin(tmp_path / "before")
    assert dist.group.WORLD is not None
    ranks = Ranks([dist.group.WORLD.group_name], Meetings())
    before = ranks.together
    assert ranks.together is before
    dist.destroy_process_group()
    with pytest.raises(RankLost, match="'0', which was destroyed: make it anew"):
        _ = ranks.together
    begin(tmp_path / "anew")
    try:
        assert ranks.together is not before
        assert torch.equal(ranks.gather(torch.arange(3.0)), torch.tensor([[0.0, 1.0, 2.0]]))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("said", ["a pair of gloo's", "Application timeout caused pair closure"])
def test_what_gloo_says_is_no_error_of_the_callers(tmp_path: Path, said: str) -> None:
    begin(tmp_path / "store")
    try:
        assert dist.group.WORLD is not None
        ranks = Ranks([dist.group.WORLD.group_name], Meetings())
        with pytest.raises(ValueError, match="its own"), ranks.together:
            raise ValueError("its own")
        with pytest.raises(RankLost, match="no longer together"), ranks.together:
            raise RuntimeError(said)
    finally:
        dist.destroy_process_group()
