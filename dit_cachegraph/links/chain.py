"""The chain of links that are the trunk: from what was seen of a whole call, or why there is none.

seen      refiner.0 | blocks.0 -> blocks.1 -> blocks.2       -> the very object is handed on
chain     blocks.0, blocks.1, blocks.2; the refiner runs as it is
streams   output 1 of blocks.0 -> argument 0 of blocks.1: these two are one
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

from dit_cachegraph.links.link import Link, Place, WeightRefs
from dit_cachegraph.links.watch import SeenLink, Spec, WatchedCall, num_elements
from dit_cachegraph.plan import Uncacheable

INSTEAD = 'call `model.compile(backend="cachedit")` on the whole model instead, if it has no breaks'


@dataclass(frozen=True, slots=True)
class ChainLink:
    """One link of the trunk. `entries` are (argument, stream), `exits[p]` is the stream of output
    `p`, `sums` are the streams that it adds to."""

    link: "weakref.ref[Link]"
    place: Place
    weights: WeightRefs
    numbers: tuple[float, ...]
    entries: tuple[tuple[int, int], ...]
    exits: tuple[int, ...]
    returned: tuple[Spec, ...]
    sums: frozenset[int]


@dataclass(frozen=True, slots=True)
class Chain:
    """The links of the trunk, after `num_before` others. `entering` are the layouts of the streams
    that enter the first link; `reach_the_end` the outputs of the last link that are read.
    `work_beside` and `num_weights_beside` are those of the other links of the call."""

    num_before: int
    links: tuple[ChainLink, ...]
    num_streams: int
    entering: tuple[tuple[int, Spec], ...]
    reach_the_end: frozenset[int]
    work_beside: int
    num_weights_beside: int


def chain_of(call: WatchedCall) -> Chain | Uncacheable:
    """The trunk of a call that was watched."""
    why = _why_no_order(call.seen)
    if why is not None:
        return Uncacheable(f"{why}; {INSTEAD}")
    start, stop = _longest_run(call)
    for border in (start - 1, stop - 1):
        if 0 <= border < len(call.seen) - 1 and _is_inside_a_list(call.seen, border):
            return Uncacheable(f"{call.broken[border]}; {INSTEAD}")
    if stop - start < 2:
        said = next(iter(call.broken.values()), "only one block of a list was called")
        return Uncacheable(f"{said}; {INSTEAD}", has_no_blocks=not call.broken)
    control = _control(call.seen[start:stop])
    if control is not None:
        return Uncacheable(f"{control}; {INSTEAD}")
    chain = _Threading(call, start, stop).chain()
    if not chain.entering:
        return Uncacheable(f"no stream enters {chain.links[0].place}; {INSTEAD}")
    if not all(spec.dtype.is_floating_point for link in chain.links for spec in link.returned):
        return Uncacheable(f"a block returns numbers that are no floats; {INSTEAD}")
    return chain


def _why_no_order(seen: Sequence[SeenLink]) -> str | None:
    last: dict[str, int] = {}
    for link in seen:
        if link.place is None:
            return "the weights of a block don't tell which of its list it is"
        before = last.get(link.place.container, -1)
        if link.place.position == before:
            return f"{link.place} is called twice"
        if link.place.position < before:
            return f"{link.place} is called after {link.place.container}.{before}, out of order"
        last[link.place.container] = link.place.position
    return None


def _control(links: Sequence[SeenLink]) -> str | None:
    """What is said of a value of a stream's shape that enters at a later link: a hit would replay
    its old effect."""
    streams = {spec for link in links for spec in link.returned}
    for link in links[1:]:
        for (_, spec), number in zip(link.given, link.objects, strict=True):
            if spec in streams and number not in links[0].objects:
                return f"{link.place} is given a control of the stream's shape, as no block before"
    return None


def _longest_run(call: WatchedCall) -> tuple[int, int]:
    """The most links in a row between which the very objects are handed on, and nothing else."""
    breaks = [-1, *sorted(call.broken), len(call.seen) - 1]
    runs = [(a + 1, b + 1) for a, b in zip(breaks, breaks[1:], strict=False)]
    return max(runs, key=lambda run: run[1] - run[0])


def _is_inside_a_list(seen: Sequence[SeenLink], border: int) -> bool:
    one, other = seen[border].place, seen[border + 1].place
    return one is not None and other is not None and one.container == other.container


def _as_first(seen: Sequence[SeenLink], start: int) -> SeenLink:
    """The first link of the trunk, to which what the link before hands on is given from outside."""
    first = seen[start]
    handed = [(q, seen[start - 1].returned[p]) for q, p in first.fed]
    return first._replace(fed=(), given=(*first.given, *handed))


class _Threading:
    """Follows each stream through the links `start..stop-1` of a call."""

    def __init__(self, call: WatchedCall, start: int, stop: int) -> None:
        self._call, self._start = call, start
        self._seen = [_as_first(call.seen, start), *call.seen[start + 1 : stop]]
        self._is_to_the_end = stop == len(call.seen)
        self._num_streams = 0
        self._came_from = self._learn_ways()

    def chain(self) -> Chain:
        links: list[ChainLink] = []
        entries = self._first_entries()
        entering = tuple((stream, dict(self._seen[0].given)[i]) for i, stream in entries.items())
        for i, seen in enumerate(self._seen):
            if i > 0:
                entries = {q: links[-1].exits[p] for q, p in seen.fed}
            links.append(self._linked(i, seen, entries))
        read = self._call.read_at_end if self._is_to_the_end else ()
        ends = read or range(len(links[-1].exits))
        reach = frozenset(links[-1].exits[p] for p in ends)
        others = [*range(self._start), *range(self._start + len(links), len(self._call.seen))]
        beside = [link for k in others if (link := self._call.seen[k].link()) is not None]
        return Chain(
            num_before=self._start,
            links=tuple(links),
            num_streams=self._num_streams,
            entering=entering,
            reach_the_end=reach,
            work_beside=sum(link.graph.work for link in beside),
            num_weights_beside=num_elements(self._call.weights[k] for k in others),
        )

    def _linked(self, i: int, seen: SeenLink, entries: dict[int, int]) -> ChainLink:
        link, exits, sums = seen.link(), [], set()
        assert link is not None, "it is held by Dynamo, or the chain is not asked for"
        for p in range(len(seen.returned)):
            stream = entries.get(self._entry_of(seen, p, entries))
            exits.append(self._new_stream() if stream is None else stream)
            if any(entries.get(q) == exits[-1] for q in link.graph.sums[p]):
                sums.add(exits[-1])
        assert seen.place is not None
        k = self._start + i
        return ChainLink(
            seen.link, seen.place, self._call.weights[k], self._call.numbers[k],
            tuple(entries.items()), tuple(exits), seen.returned, frozenset(sums),
        )  # fmt: skip

    def _learn_ways(self) -> dict[tuple[int, int], int]:
        """(link, output) -> the argument through which the next call of the link is given it."""
        ways: dict[tuple[int, int], int] = {}
        for one, other in zip(self._seen, self._seen[1:], strict=False):
            if one.link() is other.link():
                for q, p in other.fed:
                    ways.setdefault((id(one.link()), p), q)
        return ways

    def _first_entries(self) -> dict[int, int]:
        first = self._seen[0]
        every = dict.fromkeys((q for q, _ in first.given), 0)
        found = [self._entry_of(first, p, every) for p in range(len(first.returned))]
        return {q: self._new_stream() for q in dict.fromkeys(found) if q >= 0}

    def _entry_of(self, seen: SeenLink, p: int, entries: dict[int, int]) -> int:
        """The argument that output `p` goes on with; -1 for none."""
        link = seen.link()
        known = self._came_from.get((id(link), p))
        if known is not None:
            return known
        assert link is not None
        specs = {**dict(seen.given), **self._fed_specs(seen)}
        alike = [q for q in link.graph.sums[p] if q in entries and specs[q] == seen.returned[p]]
        return alike[0] if len(alike) == 1 else -1

    def _fed_specs(self, seen: SeenLink) -> dict[int, Spec]:
        k = self._seen.index(seen)
        return {q: self._seen[k - 1].returned[p] for q, p in seen.fed} if k else {}

    def _new_stream(self) -> int:
        self._num_streams += 1
        return self._num_streams - 1
