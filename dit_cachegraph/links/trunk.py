"""A trunk that the driver can walk, of a chain of links.

arguments    weights of the links | the caller's tensors | one place a link for its call
segment 0    nothing: what comes before the first link is the caller's
segment i+1  link `i`: its call and the streams at boundary `i` -> the streams at boundary `i + 1`
the last     nothing, as the first
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from dit_cachegraph.links.chain import Chain
from dit_cachegraph.links.given import Given
from dit_cachegraph.links.placeholder import Pending
from dit_cachegraph.links.roles import batch_dim_of
from dit_cachegraph.plan import (
    ArgumentRoles,
    BlockListReport,
    CompiledTrunk,
    Costs,
    FragmentRoles,
    Samples,
    Segment,
    Stream,
    Trunk,
)
from dit_cachegraph.runtime.reading import plain_measure

NO_SIGNAL = (
    "this rule compares the modulated input of block 0, which is not known where blocks are "
    "compiled one by one: compile the whole model, or choose another rule"
)
ONE_BY_ONE = "its blocks are compiled one by one: compile the whole model"


@dataclass(frozen=True, slots=True)
class Slots:
    """Where the values of one call lie. `streams[boundary]` are the slots of the streams there."""

    num_weights: int
    num_given: int
    num_links: int
    streams: tuple[dict[int, int], ...]

    @property
    def num_arguments(self) -> int:
        return self.num_weights + self.num_given + self.num_links

    def of_call(self, i: int) -> int:
        """Of the call of link `i`."""
        return self.num_weights + self.num_given + i


def slots_of(chain: Chain, given: Given) -> Slots:
    """A slot for each value that a call of the chain has."""
    num_weights = sum(len(link.weights) for link in chain.links)
    slot = num_weights + len(given.tensors) + len(chain.links)
    boundaries = [[stream for stream, _ in chain.entering]]
    boundaries += [list(dict.fromkeys(link.exits)) for link in chain.links]
    streams = []
    for crossing in boundaries:
        streams.append(dict(zip(crossing, range(slot, slot + len(crossing)), strict=True)))
        slot += len(crossing)
    return Slots(num_weights, len(given.tensors), len(chain.links), tuple(streams))


def compiled_trunk(
    chain: Chain, slots: Slots, given: Given, roles: FragmentRoles, costs: Costs
) -> CompiledTrunk:
    """The trunk of a chain."""
    latents = given.tensors[roles.latents[0]] if roles.latents else None
    probe = _probe_stream(chain, latents)
    entering = dict(chain.entering)
    batch_dim = batch_dim_of(entering[probe].shape, latents)
    made_by, last_use = _lives(chain, slots)
    trunk = Trunk(
        segments=_segments(chain, slots),
        num_arguments=slots.num_arguments,
        num_slots=len(made_by),
        made_by=made_by,
        last_use=last_use,
        results=(),
        streams=tuple(_stream(s, chain, slots) for s in range(chain.num_streams)),
        probe_stream=probe,
        block_lists=_block_lists(chain),
        injected=(),
        samples=Samples(why_together=ONE_BY_ONE),
        measure_sizes=(),
        batch_dim=batch_dim,
        modulated_input=NO_SIGNAL,
        costs=costs,
        signature=_signature(chain),
    )
    argument_roles = _argument_roles(slots, given, roles, entering[probe].device)
    argument_roles = replace(argument_roles, wrapped_parameters=_wrapped(chain))
    links = {id(link): link for each in chain.links if (link := each.link()) is not None}
    return CompiledTrunk(
        trunk=trunk,
        roles=argument_roles,
        functions=(_nothing, _run_link),
        measure=plain_measure(batch_dim),
        modulated_input=None,
        allows_batch=lambda _: False,
        num_compiled=len(links),
        compile_seconds=sum(link.compile_seconds for link in links.values()),
    )


def _nothing(inputs: list[object]) -> Sequence[object]:
    return ()


def _run_link(inputs: list[object]) -> Sequence[object]:
    pending, *streams = inputs
    assert isinstance(pending, Pending)
    return pending.run(streams)


def _segments(chain: Chain, slots: Slots) -> tuple[Segment, ...]:
    segments = [Segment("prologue", 0, (), ())]
    for i, link in enumerate(chain.links):
        before, after = slots.streams[i], slots.streams[i + 1]
        inputs = (slots.of_call(i), *(before[stream] for _, stream in link.entries))
        segments.append(Segment(str(link.place), 1, inputs, tuple(after[s] for s in link.exits)))
    return (*segments, Segment("epilogue", 0, (), ()))


def _lives(chain: Chain, slots: Slots) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """By which segment each value is made, and which reads it last. What no link is fed, nor code
    after the last one reads, is read by none after its maker."""
    made_by, last_use = [-1] * slots.num_arguments, [len(chain.links)] * slots.num_arguments
    for boundary, crossing in enumerate(slots.streams):
        if boundary < len(chain.links):
            read = {stream for _, stream in chain.links[boundary].entries}
        else:
            read = set(chain.reach_the_end)
        made_by += [boundary] * len(crossing)
        last_use += [boundary + (stream in read) for stream in crossing]
    return tuple(made_by), tuple(last_use)


def _stream(stream: int, chain: Chain, slots: Slots) -> Stream:
    """Where one stream lies, wherever it has the layout that it first has."""
    specs = [dict(chain.entering)]
    specs += [dict(zip(link.exits, link.returned, strict=True)) for link in chain.links]
    first = next(of[stream] for of in specs if stream in of)
    at = tuple(
        slots.streams[i][stream] if specs[i].get(stream) == first else None
        for i in range(len(specs))
    )
    added = tuple(
        stream in link.sums or at[i] is None or at[i + 1] is None
        for i, link in enumerate(chain.links)
    )
    return Stream(f"stream {stream}", at, added)


def _probe_stream(chain: Chain, latents: Tensor | None) -> int:
    """Of the streams that come and go at the first link, and are read at the end, the one shaped
    most like the latents, or else the largest."""
    entering, first = dict(chain.entering), chain.links[0]
    moved = [s for s in first.exits if s in entering] or list(entering)
    image = [s for s in moved if s in chain.reach_the_end] or moved
    sizes = () if latents is None else tuple(latents.shape)

    def likeness(stream: int) -> tuple[int, int]:
        shape = entering[stream].shape
        return sum(a == b for a, b in zip(shape, sizes, strict=False)), shape.numel()

    return max(image, key=likeness)


def _block_lists(chain: Chain) -> tuple[BlockListReport, ...]:
    lists = groupby(chain.links, key=lambda link: link.place.container)
    return tuple(
        BlockListReport(name, len(list(links)), "joined at run time") for name, links in lists
    )


def _signature(chain: Chain) -> int:
    kinds = [link.graph.kind for each in chain.links if (link := each.link()) is not None]
    places = tuple(link.place for link in chain.links)
    exits = tuple((link.entries, link.exits) for link in chain.links)
    return hash((places, tuple(kinds), exits))


def _wrapped(chain: Chain) -> tuple[int, ...]:
    """Which of the weights hold others."""
    weights = [ref() for link in chain.links for ref in link.weights]
    return tuple(i for i, weight in enumerate(weights) if is_traceable_wrapper_subclass(weight))


def _argument_roles(
    slots: Slots, given: Given, roles: FragmentRoles, device: torch.device
) -> ArgumentRoles:
    def arguments(indices: Sequence[int]) -> tuple[int, ...]:
        return tuple(slots.num_weights + i for i in indices)

    own = [i for i in roles.timesteps if given.tensors[i].device == device]
    sampled = [i for i in roles.latents if given.tensors[i].device == device]
    return ArgumentRoles(
        trunk_parameters=tuple(range(slots.num_weights)),
        trunk_numbers=(),
        latents=arguments(roles.latents),
        timesteps=arguments(own),
        conditioning=arguments(roles.conditioning),
        host_timesteps=arguments([i for i in roles.timesteps if i not in own]),
        sampled_latents=arguments(sampled),
        num_latent_dims=given.tensors[roles.latents[0]].dim() if roles.latents else None,
        embeds_timestep=True,
    )
