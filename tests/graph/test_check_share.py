"""What share of work and weights the blocks have, and that a small part of a model is no trunk."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from dit_cachegraph.graph.understand.count_work import work_of
from dit_cachegraph.testing import NotCacheable, assert_cacheable
from support.toy_dits import DIM, NUM_TOKENS, AddingBlock, GatedBlock, ToyDiT, gated_dit
from support.toy_runs import assert_cached, assert_refused, toy_steps

BATCH = 2


class Products(nn.Module):
    """Every kind of product that torch counts on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 10)
        self.conv = nn.Conv2d(4, 6, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.bias, self.weight = nn.Parameter(torch.zeros(7)), nn.Parameter(torch.zeros(10, 7))

    def forward(self, x: Tensor, image: Tensor) -> tuple[Tensor, ...]:
        y = self.linear(x)
        rows = y[0]
        scores = torch.einsum("bid,bjd->bij", y, y)
        scores = scores + torch.einsum("... i d, ... j d -> ... i j", y, y)
        added = torch.baddbmm(scores, y, y.mT), torch.addmm(self.bias, rows, self.weight)
        return (*added, y @ y.mT, rows.mm(self.weight), scores.bmm(y), self.up(self.conv(image)))


def work_in(module: nn.Module, *inputs: Tensor, dynamic: bool = False) -> int:
    """What the nodes of the module's graph do."""
    found: list[int] = []

    def count(gm: torch.fx.GraphModule, _: object) -> object:
        found.extend(map(work_of, gm.graph.nodes))
        return gm.forward

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(module, backend=count, dynamic=dynamic)(*inputs)
    return sum(found)


@pytest.mark.parametrize("dynamic", [False, True])
def test_work_is_what_torch_counts_when_it_runs(dynamic: bool) -> None:
    module, inputs = Products(), (torch.randn(3, 5, 6), torch.randn(2, 4, 8, 8))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*inputs)
    assert work_in(module, *inputs, dynamic=dynamic) == counter.get_total_flops()


class Attending(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


def test_work_of_attention() -> None:
    q, k, v = torch.randn(2, 4, 6, 8), torch.randn(2, 4, 7, 8), torch.randn(2, 4, 7, 5)
    # 6 x 7 pairs in 2 x 4 heads: a product over 8 channels each, and its share of 5.
    assert work_in(Attending(), q, k, v) == 2 * (2 * 4 * 6 * 7) * (8 + 5)


def test_work_of_a_layer_that_is_one_function() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    # 10 tokens; q, k, v and out of 16 x 16, up and down of 16 x 32.
    assert work_in(layer, torch.randn(2, 5, 16)) == 2 * 10 * (4 * 16 * 16 + 2 * 16 * 32)


def shares_of_gated_blocks(num_blocks: int) -> tuple[float, float]:
    """Of weights and of work, in closed form, of GatedBlock between projections of DIM to DIM."""
    modulation, mlp = 3 * DIM * DIM, 2 * 2 * DIM * DIM
    weights = num_blocks * (modulation + 3 * DIM + mlp + 3 * DIM)
    work = num_blocks * 2 * BATCH * (modulation + NUM_TOKENS * mlp)
    around = 2 * BATCH * (2 * NUM_TOKENS * DIM * DIM + DIM)  # two projections, the embedding
    return weights / (weights + 2 * DIM * DIM + DIM), work / (work + around)


@pytest.mark.parametrize("dynamic", [None, True])
def test_shares_of_the_blocks(dynamic: bool | None) -> None:
    graph = assert_cached(gated_dit(4), dynamic)
    weights, work = shares_of_gated_blocks(4)
    assert graph.share_of_weights == pytest.approx(weights)
    assert graph.share_of_work == pytest.approx(work)
    assert graph.share_skipped == pytest.approx(work * 3 / 4)
    assert str(graph).splitlines()[-1] == (
        f"  the blocks are {weights:.0%} of the model's weights; a hit skips {work * 0.75:.0%} of "
        "its work"
    )


def test_shares_of_several_regions() -> None:
    graph = assert_cached(gated_dit(4), rule="dbprune")
    assert len(graph.regions) > 1
    skipped = f"hits skip up to {graph.share_skipped:.0%} of its work"
    assert str(graph).splitlines()[-1].endswith(skipped)


def test_blocks_without_products_are_not_judged() -> None:
    graph = assert_cached(ToyDiT([AddingBlock(1.0) for _ in range(4)]))
    assert graph.share_of_work is None and "of its work" not in str(graph)


class SideLayersDiT(ToyDiT):
    """The trunk's blocks are of two kinds and hold `width` channels; beside them lie small layers,
    which are a list."""

    def __init__(self, width: int, num_layers: int = 3) -> None:
        torch.manual_seed(0)
        super().__init__([])
        self.layers = nn.ModuleList(nn.Linear(DIM, DIM) for _ in range(num_layers))
        self.first, self.second = GatedBlock(width), GatedBlock(width + 1)

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        for layer in self.layers:
            h = h + torch.tanh(layer(h)) * temb
        return self.second(self.first(h, temb), temb)


def test_small_layers_are_no_trunk() -> None:
    model = SideLayersDiT(32 * DIM)
    sentence = (
        r"\(layers x 3 at .*\) do \d+% of the work of this graph and hold \d+% of its weights"
    )
    assert_refused(model, sentence)
    with pytest.raises(NotCacheable, match="not its trunk"):
        assert_cacheable(model, toy_steps([90.0])[0])


def test_the_same_layers_are_one_where_they_do_most() -> None:
    assert [b.name for b in assert_cached(SideLayersDiT(1, 8)).block_lists] == ["layers"]
