"""The data that the stages hand on: blocks, streams, segments, the trunk. Frozen and printable.

Values are told by *slot*: an index into the list that the driver keeps for one call. The slots of
the call's own arguments come first, in their order; the values that segments make follow.
Segment 0 is the prologue, segment `i + 1` is block `i` with the glue before it, the last one is
the epilogue. Boundary `i` lies before block `i`; boundary `num_blocks` lies before the epilogue.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

CompiledSegment = Callable[[list[object]], Sequence[object]]
"""Takes the inputs as one list, which it may empty, and returns the outputs in order."""


@dataclass(frozen=True, slots=True)
class Uncacheable:
    """A refusal: why this graph runs compiled and uncached. `has_no_blocks`: they may be in other
    graphs of the same call, and cached there. `tells_break`: it says where the graph broke."""

    reason: str
    has_no_blocks: bool = False
    tells_break: bool = False

    def __str__(self) -> str:
        return f"not cached: {self.reason}"


@dataclass(frozen=True, slots=True)
class Block:
    """One call of one repeated module: the nodes `first..last` of the graph, both included."""

    path: str
    first: int
    last: int
    class_name: str


@dataclass(frozen=True, slots=True)
class BlockSequence:
    """A run of blocks of one container, in the order of their calls."""

    name: str
    blocks: tuple[Block, ...]

    def __str__(self) -> str:
        return f"{self.name} x {len(self.blocks)}"


@dataclass(frozen=True, slots=True)
class BlockListReport:
    """What the report says of one list: its name, length and pattern in the field's terms."""

    name: str
    num_blocks: int
    pattern: str


@dataclass(frozen=True, slots=True)
class Joined:
    """The streams, by index, that block `block` puts into one along `dim`, in their order."""

    block: int
    parts: tuple[int, ...]
    dim: int


@dataclass(frozen=True, slots=True)
class Stream:
    """A value carried from block to block. `slots[i]` is where it lies at boundary `i`, or None
    where it is not alive there or has another shape, dtype or layout than at its first boundary.
    `is_added_to[i]` is False where block `i` makes it anew, and adds nothing to what it was given.
    `joined`: what it was before it was one. What such a stream has in it beside those that blocks
    carry is one too, up to there.
    """

    name: str
    slots: tuple[int | None, ...]
    is_added_to: tuple[bool, ...]
    joined: Joined | None = None


@dataclass(frozen=True, slots=True)
class Segment:
    """One piece of the graph, ready to call. `outputs[k]` is the slot for output `k`, or None for
    an output that only other users of the same compiled function need. `why_eager` says why no
    CUDA graph can stand for it, if none can."""

    name: str
    kind: int
    inputs: tuple[int, ...]
    outputs: tuple[int | None, ...]
    why_eager: str | None = None


@dataclass(frozen=True, slots=True)
class ModulatedInput:
    """The modulated input of block 0: the slots that it is computed from at the first border, and
    which of its dimensions is the batch, if one is."""

    inputs: tuple[int, ...]
    batch_dim: int | None


@dataclass(frozen=True, slots=True)
class InjectedResidual:
    """A value of a stream's shape that blocks read from outside the trunk, and the arguments behind
    it that the caller gave beside latents and timestep."""

    slot: int
    sources: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Costs:
    """What each segment costs. `work`: floating-point operations, at the sizes of the call that was
    compiled; `weights`: elements of parameters, each counted once, where a block first reads it."""

    work: tuple[int, ...]
    weights: tuple[int, ...]

    def share_of_work(self, start: int, stop: int) -> float | None:
        """The share of all work that the blocks `start..stop-1` do; None where none is known of any
        block."""
        return _share(self.work, start, stop)

    def share_of_weights(self, start: int, stop: int) -> float | None:
        """The share of all weights that these blocks hold; None where no block has any."""
        return _share(self.weights, start, stop)


def _share(costs: Sequence[int], start: int, stop: int) -> float | None:
    """Block `i` is segment `i + 1`."""
    return sum(costs[start + 1 : stop + 1]) / sum(costs) if any(costs[1:-1]) else None


class RankGroups(NamedTuple):
    """The process groups, by name, in which blocks wait for other ranks: those share a sample with
    this one. `of_tokens` are those in which each may have a part of its tokens: all but those that
    `DTensor`s are spread over by weights or channels."""

    names: tuple[str, ...] = ()
    of_tokens: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Samples:
    """Where the samples of a batch lie. `rows`: the slots of tensors whose first dimension is the
    batch; `sizes`: those of arguments that are its size.

    `why_together` says why the samples can't be told apart, `why_whole` why the blocks can't run
    for some of them alone; None where they can.
    """

    rows: frozenset[int] = frozenset()
    sizes: frozenset[int] = frozenset()
    why_together: str | None = None
    why_whole: str | None = None


@dataclass(frozen=True, slots=True)
class Trunk:
    """The whole cut graph: what the driver walks.

    `made_by[slot]` is the segment that makes the value (-1 for arguments), `last_use[slot]` the
    last one that reads it (`num_blocks + 2` for a value that the call returns). `measure_sizes`
    are the size arguments that the fused diff takes first; `batch_dim` is that of the probe stream,
    None where samples are folded into another. `modulated_input` is a sentence where there is none.
    `signature` is equal for trunks that differ in sizes alone: what one keeps, the other may use.
    `weights` are the slots of all parameters and buffers.
    """

    segments: tuple[Segment, ...]
    num_arguments: int
    num_slots: int
    made_by: tuple[int, ...]
    last_use: tuple[int, ...]
    results: tuple[int, ...]
    streams: tuple[Stream, ...]
    probe_stream: int
    block_lists: tuple[BlockListReport, ...]
    injected: tuple[InjectedResidual, ...]
    samples: Samples
    measure_sizes: tuple[int, ...]
    batch_dim: int | None
    modulated_input: ModulatedInput | str
    costs: Costs
    signature: int
    groups: RankGroups = RankGroups()
    weights: frozenset[int] = frozenset()

    @property
    def num_blocks(self) -> int:
        return len(self.segments) - 2

    @property
    def list_sizes(self) -> tuple[int, ...]:
        return tuple(blocks.num_blocks for blocks in self.block_lists)


@dataclass(frozen=True, slots=True)
class ArgumentRoles:
    """What the call's arguments are, by index: who tells the model, the step and the request.

    `host_timesteps` lie on another device than the stream: reading them waits for nothing.
    `trunk_numbers` are numbers that modules of the trunk, or of what is before it, hold, such as an
    adapter's scale.
    `sampled_latents` are the latents that continuity is read off: those that are floats.
    `num_latent_dims` is that of the first ones, None where they don't come here.
    `embeds_timestep`: False for a fragment that gets the timestep from one before it, or for models
    without one. `leading_parameters` make what the blocks are given, like an embedding's.
    `wrapped_parameters` are those of either that hold others, as quantised ones do.
    """

    trunk_parameters: tuple[int, ...]
    trunk_numbers: tuple[int, ...]
    latents: tuple[int, ...]
    timesteps: tuple[int, ...]
    conditioning: tuple[int, ...]
    host_timesteps: tuple[int, ...]
    sampled_latents: tuple[int, ...]
    num_latent_dims: int | None
    embeds_timestep: bool
    wrapped_parameters: tuple[int, ...] = ()
    leading_parameters: tuple[int, ...] = ()

    @property
    def kept_under(self) -> tuple[int, ...]:
        """The weights that what is kept of a step depends on."""
        return (*self.trunk_parameters, *self.leading_parameters)

    def has_batched_sample(self, batch_dim: int | None) -> bool:
        """True where latents are read sample by sample: a single tensor, whose first dimension is
        `batch_dim` of the probe stream, if that has one."""
        return batch_dim is not None and self.sampled_latents == self.latents[:1]


@dataclass(frozen=True, slots=True)
class FragmentRoles:
    """What tensors are that no graph with the blocks has, by index: the arguments of a fragment
    without blocks, or what the caller gave a model whose blocks have a graph each."""

    timesteps: tuple[int, ...]
    latents: tuple[int, ...]
    conditioning: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LinkGraph:
    """A graph that is one block of a list and nothing else; its arguments by index.

    `weights` are those of the block, `numbers` are held by its modules, `tensors` all else that is
    a tensor. `sums[p]` are the arguments from which a sum leads to output `p`. `kind` is equal for
    graphs that differ in sizes alone. `work`: floating-point operations.
    """

    class_name: str
    weights: tuple[int, ...]
    numbers: tuple[int, ...]
    tensors: tuple[int, ...]
    sums: tuple[frozenset[int], ...]
    kind: int
    work: int


class Original(NamedTuple):
    """What the inner compiler returned for a segment; the driver calls less than all of it where
    that `makes_only_new_tensors`."""

    function: Callable[..., Any]
    makes_only_new_tensors: bool


class StreamKind(NamedTuple):
    """What kernels are built for; `width` is the last dimension, None where its size is open."""

    dtype: torch.dtype
    device: torch.device
    width: int | None


@dataclass(frozen=True, slots=True)
class CompiledTrunk:
    """A trunk with its compiled functions, `functions[segment.kind]`, the fused diff, and the
    modulated input, which is not compiled. `allows_batch` is True for the sizes of a batch that the
    functions may be called with, beside that for which Dynamo checked its guards.

    `originals` are what they were made of, in the order of the above, and `stream_kind` is that of
    the probe stream: what it takes to save it. Neither is there where blocks were compiled one by
    one. `is_loaded`: another process compiled it. `own_weights` are parameters that no call hands
    over, by argument.
    """

    trunk: Trunk
    roles: ArgumentRoles
    functions: tuple[CompiledSegment, ...]
    measure: CompiledSegment
    modulated_input: CompiledSegment | None
    allows_batch: Callable[[int], bool]
    num_compiled: int
    compile_seconds: float
    originals: tuple[Original, ...] = ()
    stream_kind: StreamKind | None = None
    is_loaded: bool = False
    own_weights: Mapping[int, torch.Tensor] = field(default_factory=dict)

    @property
    def settled_conditioning(self) -> tuple[int, ...]:
        """The conditioning that says whose a call is by what was written into it: all but what
        injected residuals are made of, where a write moves the residual and nothing else."""
        sources = {i for residual in self.trunk.injected for i in residual.sources}
        return tuple(i for i in self.roles.conditioning if i not in sources)
