"""Find the segments that one compiled function can stand for.

Segments of one structure share one. So does a block that lacks an output which its siblings have
(Dynamo drops what nobody reads): it runs as they do, and that output is dropped.

    blk(x, w0) -> (t, y);  blk(t, y, w1) -> (t, y);  blk(t, y, w2) -> (y,)      one kind
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from torch import fx

from dit_cachegraph.graph.fx_utils import is_arithmetic, tensors_in, value_of
from dit_cachegraph.graph.node_effects import has_effect
from dit_cachegraph.graph.structure import Structure
from dit_cachegraph.graph.understand.assign_nodes import Assignment


@dataclass(frozen=True, slots=True)
class Piece:
    """One segment before it is shared: the sizes it is given and computes again, its nodes, and
    what it must hand on."""

    structure: Structure
    symbols: tuple[fx.Node, ...]
    arithmetic: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]

    @property
    def places(self) -> dict[fx.Node, int]:
        """Where each result lies: size arithmetic before the nodes, at negative places."""
        own = {node: i - len(self.arithmetic) for i, node in enumerate(self.arithmetic)}
        return {**own, **self.structure.places}


@dataclass(slots=True)
class Shared:
    """The segments that share one graph; `places[i]` are the outputs member `i` hands on, as
    node places in the first member's graph."""

    members: list[int]
    places: dict[int, tuple[int, ...]]

    @property
    def output_places(self) -> tuple[int, ...]:
        return tuple(sorted({p for places in self.places.values() for p in places}))


def share_segments(pieces: Sequence[Piece]) -> list[Shared]:
    """Group the pieces that one compiled function can stand for, the fullest one first."""
    by_key: dict[object, Shared] = {}
    for i, piece in enumerate(pieces):
        key = (piece.structure.rows, piece.structure.entry_kinds, piece.symbols)
        shared = by_key.setdefault(key, Shared([], {}))
        shared.members.append(i)
        shared.places[i] = tuple(piece.places[n] for n in piece.outputs)
    kinds = list(by_key.values())
    for short in list(kinds):
        if len(short.members) == 1:  # Others may have joined it since.
            _join_a_longer_one(short, kinds, pieces)
    return kinds


def _join_a_longer_one(short: Shared, kinds: list[Shared], pieces: Sequence[Piece]) -> None:
    """Merge a block that lacks only results nobody reads into the kind of its siblings."""
    (i,) = short.members
    if not 0 < i < len(pieces) - 1:
        return
    for shared in kinds:
        if shared is short:
            continue
        places = _places_in_longer(pieces[i], pieces[shared.members[0]])
        if places is not None:
            shared.members.append(i)
            shared.places[i] = places
            kinds.remove(short)
            return


def _places_in_longer(short: Piece, long: Piece) -> tuple[int, ...] | None:
    """Where the short piece's outputs lie in the long one, if the long one computes all that the
    short one does, in the same order from the same kinds of entries, and else only dead ends: what
    nothing reads, made without an effect."""
    num_long, num_short = len(long.structure.rows), len(short.structure.rows)
    if not 0 < num_long - num_short <= num_long // 4:
        return None
    if (short.structure.entry_kinds, short.symbols) != (long.structure.entry_kinds, long.symbols):
        return None
    place_of: dict[int, int] = {}
    k = 0
    for place, row in enumerate(long.structure.rows):
        if k < num_short and _moved(short.structure.rows[k], place_of) == row:
            place_of[k] = place
            k += 1
        elif has_effect(long.structure.nodes[place]):  # on what the short piece makes
            return None
    if k < num_short:
        return None
    return tuple(place_of[short.places[n]] for n in short.outputs)


def _moved(row: object, place_of: dict[int, int]) -> object:
    """A structure row with its node places renumbered."""
    if isinstance(row, tuple):
        if len(row) == 2 and row[0] == "node":
            return ("node", place_of.get(row[1], -1))
        return tuple(_moved(item, place_of) for item in row)
    return row


def signature_of(pieces: Sequence[Piece], assignment: Assignment) -> int:
    """Equal for the graphs that Dynamo makes of one model at several sizes: the same blocks with
    the same operations on the same types, whatever the sizes are."""
    blocks = [(b.path, b.class_name) for b in assignment.blocks]
    return hash((*blocks, *(_without_sizes_of(piece.structure) for piece in pieces[1:-1])))


def _without_sizes_of(structure: Structure) -> Hashable:
    values = [value_of(node) for node in (*structure.entries, *structure.nodes)]
    tensors = [tensor for value in values for tensor in tensors_in(value)]
    # A batch of one has a size that no value of another batch may have.
    sizes = {1, *(size for tensor in tensors for size in tensor.shape if isinstance(size, int))}
    entries = [tensor for entry in structure.entries for tensor in tensors_in(value_of(entry))]
    dtypes = tuple(tensor.dtype for tensor in entries)
    rows = zip(structure.nodes, structure.rows, strict=True)
    # What a block's update is multiplied by counts, also where something has that size.
    return dtypes, tuple(_without(row, set() if is_arithmetic(n) else sizes) for n, row in rows)


def _without(row: Hashable, sizes: set[int]) -> Hashable:
    """A structure row with its sizes left out, be they numbers or expressions."""
    if not isinstance(row, tuple):
        return row
    if len(row) == 2 and (row[0] == "size" or (row[0] == "int" and row[1] in sizes)):
        return "size"
    return tuple(_without(item, sizes) for item in row)
