"""Writes in place are made plain and cached, but for those to an argument of the model, which the
caller sees: they are refused."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from support.toy_dits import AddingBlock, GatedBlock, ToyDiT, writing_dit
from support.toy_runs import assert_cached, assert_refused

Write = Callable[[Tensor, Tensor], Tensor]


def named(*functions: Write) -> list[object]:
    return [pytest.param(function, id=function.__name__) for function in functions]


def iadd_to_stream(h: Tensor, t: Tensor) -> Tensor:
    h += t
    return h


def imul_then_add(h: Tensor, t: Tensor) -> Tensor:
    h *= 2
    return h + t


def setitem_to_stream(h: Tensor, t: Tensor) -> Tensor:
    h[:, :1] = t
    return h + t


def add_to_slice(h: Tensor, t: Tensor) -> Tensor:
    h[:, :1].add_(t)
    return h + t


def mul_of_flat_view(h: Tensor, t: Tensor) -> Tensor:
    h.view(-1).mul_(2)
    return h + t


def write_through_chunk(h: Tensor, t: Tensor) -> Tensor:
    first, _ = h.chunk(2, dim=-1)
    first.mul_(2)
    return h + t


def add_out(h: Tensor, t: Tensor) -> Tensor:
    torch.add(h, 1, out=h)
    return h + t


def relu_keyword(h: Tensor, t: Tensor) -> Tensor:
    F.relu(h, inplace=True)
    return h + t


def relu_underscore(h: Tensor, t: Tensor) -> Tensor:
    torch.relu_(h)
    return h + t


def masked_fill(h: Tensor, t: Tensor) -> Tensor:
    h.masked_fill_(h < 0, 0.5)
    return h + t


def write_to_data(h: Tensor, t: Tensor) -> Tensor:
    h.data.add_(1)
    return h + t


def silu_by_position(h: Tensor, t: Tensor) -> Tensor:
    F.silu(h, True)
    return h + t


def elu_by_position(h: Tensor, t: Tensor) -> Tensor:
    F.elu(h, 1.0, True)
    return h + t


def foreach_add(h: Tensor, t: Tensor) -> Tensor:
    torch._foreach_add_([h], 1.0)
    return h + t


@torch.library.custom_op("toys::double", mutates_args=("x",))
def double(x: Tensor) -> None:
    x.mul_(2)


def custom_op(h: Tensor, t: Tensor) -> Tensor:
    double(h)
    return h + t


def custom_op_by_packet(h: Tensor, t: Tensor) -> Tensor:
    torch.ops.toys.double(h)
    return h + t


def setitem_returned(h: Tensor, t: Tensor) -> Tensor:
    h[:, :1] = t
    return h


def copy_returned(h: Tensor, t: Tensor) -> Tensor:
    h.copy_(h + t)
    return h


def out_returned(h: Tensor, t: Tensor) -> Tensor:
    torch.add(h, t, out=h)
    return h


def on_a_copy(write: Write) -> Write:
    """The same write to a buffer that the block made itself."""

    def block(h: Tensor, t: Tensor) -> Tensor:
        return h + write(h.clone(), t)

    return block


WRITES = (
    iadd_to_stream,
    imul_then_add,
    setitem_to_stream,
    add_to_slice,
    mul_of_flat_view,
    write_through_chunk,
    add_out,
    relu_keyword,
    relu_underscore,
    masked_fill,
    write_to_data,
    custom_op,
    silu_by_position,
    elu_by_position,
    foreach_add,
    custom_op_by_packet,
    setitem_returned,
    copy_returned,
    out_returned,
)


class LatentsWritingDiT(ToyDiT):
    """The blocks are given the latents as the caller gave them."""

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor | None = None
    ) -> Tensor:
        return self.trunk(hidden_states, self.embed(timestep), encoder_hidden_states)


@pytest.mark.parametrize("write", named(*WRITES))
def test_write_to_the_stream(write: Write) -> None:
    assert assert_cached(writing_dit(write)).num_blocks == 4


@pytest.mark.parametrize("write", named(*WRITES))
def test_write_to_a_stream_that_is_an_argument(write: Write) -> None:
    assert_refused(LatentsWritingDiT(list(writing_dit(write).blocks)), "not cached")


@pytest.mark.parametrize("write", named(iadd_to_stream, mul_of_flat_view, add_out, foreach_add))
def test_sentence_for_a_write_to_an_argument(write: Write) -> None:
    assert_refused(
        LatentsWritingDiT(list(writing_dit(write).blocks)),
        r"blocks\.0 writes in place \(`\S+` at test_refused_writes\.py:\d+\) to `\w+`, "
        r"an argument of the model.*write `x = x \+ y` instead",
    )


@pytest.mark.parametrize("write", named(*WRITES))
def test_write_to_a_buffer_of_the_block(write: Write) -> None:
    model = writing_dit(on_a_copy(write))
    graph = assert_cached(model)
    assert (graph.num_blocks, graph.num_compiled) == (4, 3)


def test_write_to_an_empty_buffer_of_the_block() -> None:
    def interleave(h: Tensor, t: Tensor) -> Tensor:
        turned = torch.empty_like(h)
        turned[..., 0::2] = -h[..., 1::2]
        turned[..., 1::2] = h[..., 0::2]
        return h + t * turned

    assert assert_cached(writing_dit(interleave)).num_compiled == 3


class GlueDiT(ToyDiT):
    """Calls `glue(temb, i)` before block `i`, whose result the block reads as its temb."""

    def __init__(self, glue: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__([AddingBlock(1.0) for _ in range(4)])
        self.glue = glue

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        for i, block in enumerate(self.blocks):
            h = block(h, self.glue(temb, i))
        return h


def halve_between_blocks(temb: Tensor, i: int) -> Tensor:
    return temb.mul_(0.5) if i > 0 else temb


def halve_before_blocks(temb: Tensor, i: int) -> Tensor:
    return temb.mul_(0.5) if i == 0 else temb


def fill_between_blocks(temb: Tensor, i: int) -> Tensor:
    own = torch.empty_like(temb)
    own[:] = temb * 0.5**i
    own += 1
    return own


class TembWritingBlock(nn.Module):
    """Writes to the temb that all blocks read."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Parameter(torch.tensor(0.5))

    def forward(self, h: Tensor, temb: Tensor) -> Tensor:
        temb += 1
        return h + self.step * temb


def test_write_to_what_all_blocks_read() -> None:
    assert assert_cached(ToyDiT([TembWritingBlock() for _ in range(4)])).num_blocks == 4


class TextWritingDiT(ToyDiT):
    """Halves the caller's own text between the blocks, and back, so that calls can be compared."""

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        h = self.blocks[0](h, temb, e)
        e *= 0.5
        h = self.blocks[1](h, temb, e)
        e *= 2
        return h


def test_write_to_an_argument() -> None:
    sentence = r"writes in place \(`imul`.*an argument of the model"
    assert_refused(TextWritingDiT([GatedBlock(), GatedBlock()]), sentence)


class StreamWritingGlueDiT(ToyDiT):
    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        for block in self.blocks:
            h = block(h, temb)
            h += e.mean()
        return h


def test_write_between_blocks_to_the_stream() -> None:
    model = StreamWritingGlueDiT([GatedBlock() for _ in range(4)])
    assert assert_cached(model).num_blocks == 4


@pytest.mark.parametrize("glue", [halve_before_blocks, halve_between_blocks, fill_between_blocks])
def test_write_between_blocks_to_what_depends_on_none(
    glue: Callable[[Tensor, int], Tensor],
) -> None:
    assert assert_cached(GlueDiT(glue)).num_blocks == 4


class AfterTrunkDiT(ToyDiT):
    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        h = super().trunk(h, temb, e)
        h *= 2
        return h


def test_write_after_the_blocks() -> None:
    assert assert_cached(AfterTrunkDiT([GatedBlock() for _ in range(4)])).num_blocks == 4
