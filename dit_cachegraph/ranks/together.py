"""Whether all ranks that share a sample are in the same call, and who isn't there if one fails.

    rank 1 dies          the others' collective fails, at once or after the group's timeout; each
                         says so in the store, waits a little for what others say, and names rank 1
    rank 1 raises        it says so in the store; the others wait for it in a collective until the
                         group's timeout, and then name it and its error
    all raise alike      each has said so by its next call, and they go on

A collective that fails names a socket at best, and one that times out nobody.
"""

import threading
import time
import weakref
from collections.abc import Sequence
from types import TracebackType

import torch.distributed as dist

from dit_cachegraph.exc import RankLost
from dit_cachegraph.ranks.roll import Ended, Roll

PATIENCE_SECONDS = 10.0
_POLL_SECONDS = 0.05
_WHAT_TO_DO = "End all ranks, see the log of the one that is named, and start them anew"
_NO_STORE = (
    "rank 0 is gone, or torchrun where that started it: the store of torch.distributed, which it "
    "keeps, doesn't answer"
)


# The one of them that doesn't say whose it is.
_GLOO_SAYS = ("gloo", "Application timeout caused pair closure")


class Together:
    """A context for each call of a rank, with `others`, who share its samples, by whatever graph:
    all that wait in the same `groups` have one. Groups are held weakly.

    Raises:
        RankLost: a collective of the call failed; or the call before was left by this rank alone.
    """

    def __init__(
        self, rank: int, others: frozenset[int], groups: Sequence[dist.ProcessGroup]
    ) -> None:
        self._others, self._roll = others, Roll(rank)
        self._groups = tuple(map(weakref.ref, groups))
        self._call, self._has_left = 0, False
        self._why_lost: str | None = None
        self.has_met, self.is_gathering = False, False

    def is_of(self, groups: Sequence[dist.ProcessGroup]) -> bool:
        """True for the very same groups."""
        return [group() for group in self._groups] == list(groups)

    def __enter__(self) -> None:
        if self._why_lost is not None:
            raise RankLost(self._why_lost)
        if self._has_left:
            self._rejoin()
        self._call += 1
        self.has_met = self.is_gathering = False

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._leave(error)
        elif self._has_left:
            self._roll.say_ended(None)
            self._has_left = False

    def _leave(self, error: BaseException) -> None:
        """Before the first gather nobody has met: the next call is this one, for the others."""
        is_own = not _is_of_a_collective(error)
        if is_own and not self.has_met:
            return
        self._has_left = True
        said = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        try:
            self._roll.say_ended(Ended(self._call, said, is_own))
            missing = None if is_own else self._who_is_missing()
        except RuntimeError:
            missing = _NO_STORE
        if not is_own:
            where = "where they gather" if self.is_gathering else "in the model"
            self._why_lost = (
                f"ranks that share a sample are no longer together: {missing}. This one was at its "
                f"call {self._call}, {where} ({said}). {_WHAT_TO_DO}"
            )
            raise RankLost(self._why_lost) from error

    def _who_is_missing(self) -> str:
        """Waits a little for all to say how their call ended."""
        ended, gone = self._heard()
        missing = [
            f"rank {rank} is gone ({self._roll.place(rank)} has ended{self._if_whole(rank)})"
            for rank in sorted(gone)
        ]
        for rank, how in sorted(ended.items()):
            if how.is_own:
                missing.append(f"rank {rank} raised in its call {how.call} ({how.error})")
        if not missing:
            missing = [self._why_silent(rank) for rank in sorted(self._others - ended.keys())]
        return "; ".join(missing) or "all of them are there, but what connects them failed"

    def _heard(self) -> tuple[dict[int, Ended], set[int]]:
        """Those who said how their call ended, and those whose process has."""
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            ended = self._roll.ended(self._others)
            silent = self._others - ended.keys()
            gone = {rank for rank in silent if self._roll.is_gone(rank)}
            if gone == silent or time.monotonic() > until:
                return ended, gone
            time.sleep(_POLL_SECONDS)

    def _why_silent(self, rank: int) -> str:
        return (
            f"rank {rank} doesn't answer ({self._roll.place(rank)}{self._if_whole(rank)}): it is "
            "stopped, waits for somebody else, is on a host that is gone, or made no such call"
        )

    def _if_whole(self, rank: int) -> str:
        """A rank that runs uncached makes no gathers."""
        why = self._roll.why_whole(rank)
        return f"; what it compiled last runs uncached: {why}" if why else ""

    def _rejoin(self) -> None:
        """After an error of this rank's own: the others may have had the same, and if not, they
        wait in the middle of a call for what this rank will never do."""
        ended, _ = self._heard()
        for rank in sorted(self._others):
            if rank not in ended or not ended[rank].is_own:
                raise RankLost(
                    f"this rank left its call {self._call} by an error, and rank {rank} didn't: "
                    f"it waits in it for this one, or did until now. {_WHAT_TO_DO}"
                )


class Meetings:
    """All that this process is together in. A rank that left one graph in the middle leaves the
    others waiting there, and its call of another graph would meet them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: weakref.WeakSet[Together] = weakref.WeakSet()

    def of(
        self, rank: int, others: frozenset[int], groups: Sequence[dist.ProcessGroup]
    ) -> Together:
        """That of these groups, made now if there is none yet."""
        with self._lock:
            found = next((known for known in self._known if known.is_of(groups)), None)
            if found is None:
                found = Together(rank, others, groups)
                self._known.add(found)
        return found


def _is_of_a_collective(error: BaseException) -> bool:
    """gloo's errors have no type of their own."""
    is_gloos = isinstance(error, RuntimeError) and any(said in str(error) for said in _GLOO_SAYS)
    return is_gloos or isinstance(error, dist.DistError)
