"""Which lists join the trunk: those that are called in turn with it, and those beside it."""

import pytest
import torch
from torch import Tensor, nn

import dit_cachegraph as dc
from support.toy_dits import DIM, AddingBlock, Calling, GatedBlock, ToyDiT, TwoListDiT
from support.toy_runs import assert_cached, compile_toy, run, toy_steps


def gated_blocks(num_blocks: int) -> list[nn.Module]:
    torch.manual_seed(0)
    return [GatedBlock() for _ in range(num_blocks)]


def lists_of(model: nn.Module) -> list[tuple[str, int]]:
    return [(found.name, found.num_blocks) for found in assert_cached(model).block_lists]


class InTurnDiT(ToyDiT):
    """Blocks over the tokens and blocks over the channels, in turn."""

    def __init__(self, num_pairs: int, hands_over: bool = True) -> None:
        super().__init__(gated_blocks(num_pairs))
        self.others = nn.ModuleList(gated_blocks(num_pairs))
        self.hands_over = hands_over

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        for block, other in zip(self.blocks, self.others, strict=True):
            h = block(h, temb)
            if self.hands_over:
                h = other(h.flip(1).contiguous(), temb).flip(1)
            else:
                h = h + other(h, temb)
        return h


@pytest.mark.parametrize("num_pairs", [2, 4])
def test_two_lists_called_in_turn_are_one_sequence(num_pairs: int) -> None:
    graph = assert_cached(InTurnDiT(num_pairs))
    assert [(b.name, b.num_blocks) for b in graph.block_lists] == [
        ("blocks and others", 2 * num_pairs)
    ]
    # Prologue, first block, block after a flip, flipped block, epilogue: the same at any depth.
    assert graph.num_compiled == 5


def test_an_adapter_that_is_added_is_no_block() -> None:
    """It doesn't carry the stream: the addition reads the stream as well."""
    assert lists_of(InTurnDiT(3, hands_over=False)) == [("blocks", 3)]


class FramesDiT(ToyDiT):
    """Two frames of three tokens. The blocks work on tokens of a frame and on frames of a token, in
    turn; between them the stream has the layout of the former."""

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        temb = temb[:1]
        h = h.reshape(-1, 3, DIM)
        for block, other in zip(self.blocks, self.others, strict=True):
            h = block(h, temb)
            by_token = h.reshape(-1, 2, 3, DIM).permute(0, 2, 1, 3).reshape(-1, 2, DIM)
            by_token = other(by_token, temb)
            h = by_token.reshape(-1, 3, 2, DIM).permute(0, 2, 1, 3).reshape(-1, 3, DIM)
        return h.reshape(-1, 6, DIM)

    def __init__(self, *steps: float) -> None:
        super().__init__([Calling(step) for step in steps[::2]])
        self.others = nn.ModuleList(Calling(step) for step in steps[1::2])


def test_stream_that_is_permuted_for_every_other_block_is_one_stream() -> None:
    """Between two shapes there would be nothing to add to, and a hit would keep the old latents."""
    model = FramesDiT(1, 2, 3, 4)
    compiled = compile_toy(model, residual_diff_threshold=1.0)
    computed, reused = toy_steps([90.0, 30.0])
    torch.testing.assert_close(run(compiled, computed), run(model, computed))
    output = run(compiled, reused)
    (graph,) = dc.summary(compiled).graphs
    assert (graph.num_blocks, graph.num_streams, graph.num_compiled) == (4, 1, 4)
    torch.testing.assert_close(output, reused["hidden_states"] + (0.5 + 2 + 3 + 4) / 2)


class PairDiT(ToyDiT):
    """A second stream, of pairs of tokens, is updated after every other block, by the heavier list
    of the two; the picture leaves by the other one."""

    def __init__(self) -> None:
        super().__init__([PairReader() for _ in range(4)])
        self.updates = nn.ModuleList(PairUpdate() for _ in range(2))

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        pairs = h[:, :, None] + h[:, None]
        for i, block in enumerate(self.blocks):
            h = block(h, pairs, temb)
            if i % 2 == 0:
                pairs = self.updates[i // 2](h, pairs)
        return h


class PairReader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = GatedBlock()

    def forward(self, h: Tensor, pairs: Tensor, temb: Tensor) -> Tensor:
        return self.block(h, temb) + pairs.mean(dim=2)


class PairUpdate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(DIM, DIM)

    def forward(self, h: Tensor, pairs: Tensor) -> Tensor:
        return pairs + self.linear(torch.tanh(h[:, :, None] * h[:, None] + pairs))


def test_list_of_a_second_stream_joins_the_one_that_carries_the_picture() -> None:
    assert lists_of(PairDiT()) == [("blocks and updates", 6)]


class LayersDiT(ToyDiT):
    """An `nn.Sequential` of layers makes what enters the blocks, another what leaves them."""

    def __init__(self) -> None:
        super().__init__(gated_blocks(3))
        self.before = nn.Sequential(nn.Linear(DIM, DIM), nn.Tanh(), nn.Linear(DIM, DIM))
        self.after = nn.Sequential(nn.Linear(DIM, DIM), nn.Tanh(), nn.Linear(DIM, DIM))

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        return self.after(super().trunk(self.before(h), temb, e))


def test_layers_beside_the_blocks_are_no_blocks() -> None:
    assert lists_of(LayersDiT()) == [("blocks", 3)]


def test_blocks_of_one_layer_are_blocks_where_nothing_else_is() -> None:
    assert lists_of(ToyDiT([AddingBlock(0.1) for _ in range(3)])) == [("blocks", 3)]


class OneSequenceBlock(nn.Module):
    """Over text and image in one sequence; shift, scale and gate are rows of a table, or none."""

    def __init__(self, has_table: bool) -> None:
        super().__init__()
        self.has_table = has_table
        self.up, self.down = nn.Linear(DIM, 2 * DIM), nn.Linear(2 * DIM, DIM)

    def forward(self, both: Tensor, temb: Tensor) -> Tensor:
        shift, scale, gate = temb.unbind(dim=1) if self.has_table else (temb[:, 0],) * 3
        x = both * (1 + scale[:, None]) + shift[:, None]
        return both + gate[:, None] * self.down(torch.tanh(self.up(x)))


class ConcatenatingDiT(TwoListDiT):
    """Joint blocks, then blocks over one sequence of text and image."""

    def __init__(self, has_table: bool) -> None:
        super().__init__(2, 0)
        self.single_blocks = nn.ModuleList(OneSequenceBlock(has_table) for _ in range(3))
        self.has_table = has_table

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        for block in self.blocks:
            e, h = block(h, e, temb)
        both = torch.cat([e, h], dim=1)
        table = torch.cat([temb, 2 * temb, 3 * temb], dim=1) if self.has_table else temb
        for block in self.single_blocks:
            both = block(both, table)
        return both[:, e.shape[1] :]


@pytest.mark.parametrize("has_table", [True, False])
def test_pattern_of_blocks_over_one_sequence(has_table: bool) -> None:
    """The streams are put into one in the glue, which goes with the list's first block."""
    graph = assert_cached(ConcatenatingDiT(has_table))
    assert [found.pattern for found in graph.block_lists] == [
        "Pattern_0 or Pattern_1 (h, e -> h and e)",
        "Pattern_3 (h -> h)",
    ]


class CollectingDiT(TwoListDiT):
    """A ControlNet in small: what each block returns of the image is read once more at the end."""

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        returned = []
        for block in [*self.blocks, *self.single_blocks]:
            e, h = block(h, e, temb)
            returned.append(h)
        return torch.stack(returned).tanh().sum(0)


def test_lists_of_which_each_output_is_collected_are_one_trunk() -> None:
    """The second list was taken to carry the text alone, and layers inside the first for the list
    before it: FLUX's ControlNets with single blocks were refused."""
    assert lists_of(CollectingDiT(2, 3)) == [("blocks", 2), ("single_blocks", 3)]
