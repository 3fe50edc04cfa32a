"""A call that computes, watched: which block was given what the one before had returned.

transformer_blocks.0 -> (e, h)    transformer_blocks.1 (h, e, temb): fed (1, 0)
...                               and of each output: it died, unwritten, and nobody read it
"""

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from dit_cachegraph.call_stack import own_compiled_call
from dit_cachegraph.links.glue import Glue, has_hook
from dit_cachegraph.links.link import Link, Place, Places, WeightRefs

_KEPT = " is kept by the caller"


@dataclass(frozen=True, slots=True)
class Spec:
    """What a value is like. How it is laid out, and in what if it is a view, is of no account for
    what it can be added to, but Dynamo's guards look at it."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    strides: tuple[int, ...] = field(compare=False)
    offset: int = field(compare=False)
    base: "Spec | None" = field(compare=False)

    def empty(self) -> Tensor:
        """A tensor like it."""
        if self.base is not None:
            return self.base.empty().as_strided(self.shape, self.strides, self.offset)
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device=self.device)


def spec_of(tensor: Tensor) -> Spec:
    shape, dtype, device, base = tensor.shape, tensor.dtype, tensor.device, tensor._base
    if base is None or base.dtype != dtype or _overlaps(tensor) or _overlaps(base):
        strides = torch.empty_like(tensor, device="meta").stride()
        return Spec(shape, dtype, device, strides, 0, None)
    offset = int(tensor.storage_offset() - base.storage_offset())
    own = Spec(base.shape, dtype, device, base.stride(), 0, None)
    return Spec(shape, dtype, device, tensor.stride(), offset, own)


def _overlaps(tensor: Tensor) -> bool:
    """True for one that was expanded: nobody can write to it."""
    return torch._debug_has_internal_overlap(tensor) == 1


def version_of(tensor: Tensor) -> int:
    """How often it was written to; nobody counts that of an inference tensor."""
    return 0 if tensor.is_inference() else tensor._version


class SeenLink(NamedTuple):
    """One call of a link. `fed` are the (argument, output) pairs in which it was given the very
    object that the link before returned; `given` are its other tensors, by argument, and `objects`
    which of all that are given to links in this call they are."""

    link: "weakref.ref[Link]"
    place: Place | None
    fed: tuple[tuple[int, int], ...]
    given: tuple[tuple[int, Spec], ...]
    objects: tuple[int, ...]
    returned: tuple[Spec, ...]


class WatchedCall:
    """One call of the model. `broken[i]` says why what link `i` returned is more than handed on;
    `read_at_end` are the outputs of the last link that code after it read. `counts`: nothing was
    compiled in it, and all its glue was watched."""

    def __init__(self, places: Places) -> None:
        self.seen: list[SeenLink] = []
        self.broken: dict[int, str] = {}
        self.weights: list[WeightRefs] = []
        self.numbers: list[tuple[float, ...]] = []
        self.read_at_end: tuple[int, ...] = ()
        self.counts = True
        self._places = places
        self._glue = Glue()
        self._returned: list[list[tuple[weakref.ref[Tensor], int]]] = []
        self._objects: list[tuple[weakref.ref[Tensor], int]] = []
        self._is_written = False
        self._glue.begin()

    def run(self, link: Link, args: Sequence[object]) -> Sequence[Tensor]:
        """Run the link, and note what is seen."""
        was_on = self._glue.take_off()
        own_call = own_compiled_call()
        self.counts = (own_call is None or has_hook(own_call)) and self.counts
        try:
            outputs = self._run(link, args)
        finally:
            # A compiled call that had no hook yet began with the mode on, and leaves the dispatcher
            # as if it still were.
            if was_on:
                self._glue.put_on()
        if own_call is None:
            self._glue.put_on()
        return outputs

    def _run(self, link: Link, args: Sequence[object]) -> Sequence[Tensor]:
        seen = self._seen(link, args)
        self._look_back(seen)
        outputs = link.function(*args)
        self.seen.append(seen._replace(returned=tuple(map(spec_of, outputs))))
        self.weights.append(tuple([self._places.ref_of(args[i]) for i in link.graph.weights]))
        self.numbers.append(numbers_of(link, args))
        self._returned.append([(weakref.ref(t), version_of(t)) for t in outputs])
        self._glue.watch(outputs)
        return outputs

    def end(self) -> None:
        """The model has returned, or raised."""
        self.read_at_end = tuple(sorted(self._glue.read))
        if self._glue.has_read_older:
            self._break(len(self.seen) - 2, f"what {self.seen[-2].place} returned{_KEPT}")
        self._glue.end()
        self._returned.clear()

    def _seen(self, link: Link, args: Sequence[object]) -> SeenLink:
        before = self._returned[-1] if self._returned else []
        self._is_written = False
        fed, given, objects = [], [], []
        for i in link.graph.tensors:
            value = args[i]
            assert isinstance(value, Tensor)
            from_output = next((p for p, (ref, _) in enumerate(before) if ref() is value), None)
            if from_output is None:
                given.append((i, spec_of(value)))
                objects.append(self._number_of(value))
            else:
                fed.append((i, from_output))
        place = self._places.of(link, args)
        return SeenLink(weakref.ref(link), place, tuple(fed), tuple(given), tuple(objects), ())

    def _number_of(self, value: Tensor) -> int:
        """Equal for one object in the whole call. Notes whether it was written to since a link was
        given it last."""
        now = (weakref.ref(value), version_of(value))
        known = next((i for i, (ref, _) in enumerate(self._objects) if ref() is value), None)
        if known is None:
            self._objects.append(now)
            return len(self._objects) - 1
        self._is_written = self._is_written or now[1] != self._objects[known][1]
        self._objects[known] = now
        return known

    def _look_back(self, seen: SeenLink) -> None:
        """What became of what the links before returned."""
        i = len(self._returned) - 1
        if i < 0:
            return
        border = f"the code between {self.seen[i].place} and {seen.place}"
        if self._glue.read:
            self._break(i, f"{border} reads what the first of them returned")
        if any(version_of(t) != version for t, version in _alive(self._returned[i])):
            self._break(i, f"{border} writes to what the first of them returned")
        if not seen.fed:
            self._break(i, f"{border} hands on another value than the first of them returned")
        if i > 0 and any(_alive(self._returned[i - 1])):
            self._break(i - 1, f"what {self.seen[i - 1].place} returned{_KEPT}")
        if self._is_written:
            self._break(i, f"{border} writes to what both of them, or blocks before, are given")

    def _break(self, i: int, sentence: str) -> None:
        self.broken.setdefault(i, sentence)


def numbers_of(link: Link, args: Sequence[object]) -> tuple[float, ...]:
    """The numbers that the modules of a block hold."""
    numbers = [args[i] for i in link.graph.numbers]
    return tuple([number.item() for number in numbers if isinstance(number, Tensor)])


def num_elements(links: Iterable[WeightRefs]) -> int:
    """Of all weights of some links that are alive, each once."""
    alive = {id(t): t for refs in links for ref in refs if isinstance(t := ref(), Tensor)}
    return sum(weight.numel() for weight in alive.values())


def _alive(returned: Sequence[tuple["weakref.ref[Tensor]", int]]) -> list[tuple[Tensor, int]]:
    return [(tensor, version) for ref, version in returned if (tensor := ref()) is not None]
