"""A group of ranks is gone when its owner destroys it."""

import gc
import weakref
from pathlib import Path

import torch
import torch.distributed as dist

from dit_cachegraph.ranks.group import Ranks


def test_a_destroyed_group_lives_on_nowhere(tmp_path: Path) -> None:
    """Its threads would wait for the interpreter while that ends."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        group = dist.group.WORLD
        assert group is not None
        ranks = Ranks([group.group_name])
        assert torch.equal(ranks.gather(torch.arange(3.0)), torch.tensor([[0.0, 1.0, 2.0]]))
        known = weakref.ref(group)
        del group
    finally:
        dist.destroy_process_group()
    gc.collect()
    assert known() is None
