"""What is kept between steps: one `Branch` a request and guidance branch, held by its model.

A branch without a named request is told by its conditioning: the storages, offsets and shapes of
the tensors that are neither latents nor timestep. Storages are held weakly; when one dies, so does
the branch with all that it keeps.
"""

import itertools
import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dit_cachegraph.policy.rule import History
from dit_cachegraph.runtime.trajectory import Trajectory

Identity = Hashable


@dataclass(frozen=True, slots=True)
class Kept:
    """What a computed step leaves for later ones. All tensors own their storage.

    `region` is (start, stop, probe boundary): another region can't use it. `effects[i]` belongs to
    the region's i-th replay: a residual, or the whole value where `is_residual[i]` is False.
    """

    region: tuple[int, int, int]
    probe: Tensor
    effects: tuple[Tensor, ...]


@dataclass(slots=True)
class Branch:
    """The state of one request and guidance branch: replaced as a whole at the end of a step."""

    label: str
    trajectory: Trajectory = field(default_factory=Trajectory)
    history: History = field(default_factory=History)
    kept: dict[object, Kept] = field(default_factory=dict)
    image: "ImageTally" = field(default_factory=lambda: ImageTally())

    def tensors(self) -> list[Tensor]:
        return [t for kept in list(self.kept.values()) for t in (kept.probe, *kept.effects)]


@dataclass(slots=True)
class ImageTally:
    """What the line about an image says."""

    num_hits: int = 0
    num_computed: int = 0
    num_blocks_run: int = 0
    num_blocks: int = 0
    smallest_diff: float | None = None
    threshold: float | None = None


class BranchTable:
    """All branches of one model, by named request and by the identity of their conditioning."""

    def __init__(self, on_forget: Callable[[Branch], None]) -> None:
        self._on_forget = on_forget
        self._branches: dict[Identity, Branch] = {}
        self._watched: dict[Identity, tuple[weakref.ref[torch.UntypedStorage], ...]] = {}
        self._labels = itertools.count(1)

    def find(self, request_key: Hashable | None, conditioning: Sequence[object]) -> Branch:
        """The branch of a call; a new one if there is none yet."""
        storages: list[torch.UntypedStorage] = []
        parts: list[object] = []
        for value in conditioning:
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                storages.append(storage)
                parts.append((id(storage), value.storage_offset(), value.shape))
        identity = (request_key, *parts)
        branch = self._branches.get(identity)
        if branch is None:
            branch = self._add(identity, request_key, storages)
        return branch

    def _add(
        self, identity: Identity, request_key: Hashable | None, storages: list[torch.UntypedStorage]
    ) -> Branch:
        label = f"#{next(self._labels)}" if request_key is None else str(request_key)
        branch = self._branches[identity] = Branch(label)
        forget = _forgetter(weakref.ref(self), identity)
        # A storage's Python object lives exactly as long as the storage (torch 2.1 on), so this
        # also holds for views that are made anew at every call.
        self._watched[identity] = tuple(weakref.ref(storage, forget) for storage in storages)
        return branch

    def forget(self, identity: Identity) -> None:
        branch = self._branches.pop(identity, None)
        self._watched.pop(identity, None)
        if branch is not None:
            self._on_forget(branch)

    def drop(self, request_key: Hashable | None = None) -> None:
        """Drop the branches of one request, or all of them."""
        for identity in list(self._branches):
            if request_key is None or (isinstance(identity, tuple) and identity[0] == request_key):
                self.forget(identity)

    @property
    def nbytes(self) -> int:
        """Bytes of all state held, each storage once."""
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for branch in list(self._branches.values())
            for tensor in branch.tensors()
        }
        return sum(storages.values())

    def __len__(self) -> int:
        return len(self._branches)


def _forgetter(
    table: "weakref.ref[BranchTable]", identity: Identity
) -> Callable[["weakref.ref[torch.UntypedStorage]"], None]:
    def forget(_: "weakref.ref[torch.UntypedStorage]") -> None:
        alive = table()
        if alive is not None:
            alive.forget(identity)

    return forget
