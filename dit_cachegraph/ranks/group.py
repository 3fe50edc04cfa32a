"""The processes that share each sample with this one, and the one way to hear of them.

Several groups are the axes of a mesh (attention split over one, weights over the other), and a
gather goes along one after the other:

    ranks 0 1    over [0, 1] and [2, 3]    rank 0: 0 1        over [0, 2] and [1, 3]    0 1 2 3
          2 3                              rank 2: 2 3                                  0 1 2 3
"""

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor

from dit_cachegraph.exc import RankLost
from dit_cachegraph.ranks.roll import say_whole
from dit_cachegraph.ranks.together import Meetings, Together


class Ranks:
    """All ranks that share a sample with this one. Every one of them has to make each of these
    calls, with tensors of the same size.

    Groups are held by their names: one that lives on after `destroy_process_group` has threads that
    may still wait for the interpreter when that ends, which ends the process by SIGABRT. So a group
    that is made anew by the same name is taken, as the collectives of the blocks take it.
    """

    def __init__(self, groups: Sequence[str], meetings: Meetings) -> None:
        """`groups` by their names in torch.distributed, of which this rank is in each."""
        self._meetings = meetings
        found = _axes([_group(name) for name in groups])
        self._groups = tuple([group.group_name for group in found])
        self.rank, self._axes = dist.get_rank(), [dist.get_process_group_ranks(g) for g in found]
        self._together = self._meet(found)
        say_whole("")

    def _meet(self, groups: Sequence[dist.ProcessGroup]) -> Together:
        return self._meetings.of(self.rank, others_on_axes(self.rank, self._axes), groups)

    @property
    def together(self) -> Together:
        """What a call of these ranks is made in.

        Raises:
            RankLost: a group was destroyed, or made anew of other ranks.
        """
        groups = [_group(name) for name in self._groups]
        if not self._together.is_of(groups):
            axes = [dist.get_process_group_ranks(group) for group in groups]
            if (dist.get_rank(), axes) != (self.rank, self._axes):
                raise RankLost(_why_others(self.rank, self._axes, axes))
            self._together = self._meet(groups)
        return self._together

    def gather(self, numbers: Tensor) -> Tensor:
        """The `numbers`, [n], of every rank, [ranks, n], in the same order on each. On a GPU the
        host waits for nothing."""
        rows = numbers.reshape(1, -1)
        self._together.has_met = self._together.is_gathering = True
        for group in map(_group, self._groups):
            gathered = rows.new_empty(group.size() * rows.shape[0], rows.shape[1])
            _all_gather(gathered, rows.contiguous(), group)
            rows = gathered
        self._together.is_gathering = False
        return rows

    def summed(self, sums: Tensor) -> Tensor:
        """The sums of all ranks, added up."""
        return self.gather(sums.reshape(-1)).sum(0).reshape(sums.shape)


def _group(name: str) -> dist.ProcessGroup:
    try:
        return dist.distributed_c10d._resolve_process_group(name)  # type: ignore[arg-type]
    except RuntimeError as error:
        raise RankLost(
            f"the blocks wait for the ranks of process group {name!r}, which was destroyed: make "
            "it anew on all of them, of the same ranks, before the model is called"
        ) from error


def _why_others(rank: int, before: Sequence[object], now: Sequence[object]) -> str:
    return (
        f"the process groups in which the blocks wait were made anew: this was rank {rank} of "
        f"{_listed(before)}, and is rank {dist.get_rank()} of {_listed(now)}. What was compiled is "
        "of the ranks before: call torch._dynamo.reset() on all of them, and compile the model anew"
    )


def _listed(axes: Sequence[object]) -> str:
    return ", ".join(map(str, axes))


def _all_gather(gathered: Tensor, rows: Tensor, group: dist.ProcessGroup) -> None:
    """By the name that it has in this torch: 2.13 warns of the older one."""
    if hasattr(dist, "all_gather_single"):
        dist.all_gather_single(gathered, rows, group=group)
    else:
        dist.all_gather_into_tensor(gathered, rows, group=group)


def ranks_of(groups: Sequence[str], meetings: Meetings) -> Ranks | None:
    """None where there is no group: then nobody shares a sample."""
    return Ranks(groups, meetings) if groups else None


def _axes(groups: Sequence[dist.ProcessGroup]) -> list[dist.ProcessGroup]:
    """The groups that are needed to reach all ranks, those of neighbours first, as on each rank."""
    by_ranks = {tuple(dist.get_process_group_ranks(group)): group for group in groups}
    largest = [r for r in by_ranks if not any({*r} < {*other} for other in by_ranks)]
    return [by_ranks[r] for r in sorted(largest, key=_stride)]


def _stride(ranks: Sequence[int]) -> tuple[int, ...]:
    return (ranks[1] - ranks[0], *ranks) if len(ranks) > 1 else (0,)


def others_on_axes(rank: int, axes: Sequence[Sequence[int]]) -> frozenset[int]:
    """All ranks of the even mesh that has these axes through `rank`, but for that one."""
    found = {rank}
    for axis in axes:
        found |= {at + other - rank for at in found for other in axis}
    return frozenset(found - {rank})
