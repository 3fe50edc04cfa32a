"""What ranks say of themselves outside of any collective: in the store of torch.distributed.

    where/1    the host and the process of rank 1, once
    ended/1    how its call ended, where that was by an error; "" again once a call went well
    whole/1    why what it compiled last runs uncached, and so gathers nothing; "" where it doesn't

It is read after a collective has failed, which says at best the address of a socket. The store is
torchrun's, or else rank 0's, and goes with it.
"""

import json
import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

import torch.distributed as dist


class Ended(NamedTuple):
    """A call of a rank that ended by an error. `is_own`: not by a collective."""

    call: int
    error: str
    is_own: bool


class Place(NamedTuple):
    """A process, and the host that it runs on."""

    host: str
    pid: int

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Roll:
    """The entries of this rank and of others."""

    def __init__(self, rank: int) -> None:
        self._store = _store()
        self._rank, self._here = rank, Place(socket.gethostname(), os.getpid())
        self._store.set(f"where/{rank}", json.dumps(self._here))
        self.say_ended(None)

    def say_ended(self, ended: Ended | None) -> None:
        """None: this rank is among the others again."""
        said = "" if ended is None else json.dumps(ended)
        self._store.set(f"ended/{self._rank}", said)

    def ended(self, ranks: Iterable[int]) -> dict[int, Ended]:
        """Of those ranks whose last call ended by an error, how."""
        said = {rank: self._read(f"ended/{rank}") for rank in ranks}
        return {rank: Ended(*json.loads(text)) for rank, text in said.items() if text}

    def place(self, rank: int) -> Place | None:
        """None where a rank never got so far as to say it."""
        said = self._read(f"where/{rank}")
        return Place(*json.loads(said)) if said else None

    def why_whole(self, rank: int) -> str:
        """Why what a rank compiled last runs uncached; "" where it doesn't."""
        return self._read(f"whole/{rank}")

    def is_gone(self, rank: int) -> bool:
        """True where the process of a rank has ended, which shows on its own host alone."""
        place = self.place(rank)
        if place is None or place.host != self._here.host:
            return False
        try:
            os.kill(place.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False

    def _read(self, key: str) -> str:
        return self._store.get(key).decode() if self._store.check([key]) else ""


def say_whole(why: str) -> None:
    """What this rank compiles now runs uncached, and it may be alone in that; "" where it doesn't.
    A store that can't be reached, or keeps nothing, is no reason not to compile."""
    with suppress(RuntimeError):
        _store().set(f"whole/{dist.get_rank()}", why)


def _store() -> dist.Store:
    store = dist.distributed_c10d._get_default_store()
    return dist.PrefixStore("dit_cachegraph", store)
