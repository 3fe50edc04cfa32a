"""The finder on toys: which lists are the trunk, what they carry, what shares a compiled function.

In closed-form models block i adds `step_i * sin(timestep)`, and `proj_in` doubles and
`proj_out` halves, so that outputs are worked out by hand; sin is 1 at 90 degrees and 0.5 at 30.
"""

import pytest
import torch
from torch import Tensor, nn

from dit_cachegraph.report import GraphReport
from support.toy_dits import (
    DIM,
    AddingBlock,
    ClosureDiT,
    ControlDiT,
    CrossDiT,
    GatedBlock,
    JointDiT,
    LongSkipDiT,
    NestedDiT,
    SlicedTembDiT,
    TowerDiT,
    ToyDiT,
    TwoListDiT,
    adding_dit,
    gated_dit,
)
from support.toy_runs import assert_cached, compile_toy, run, toy_steps

TEXT_AND_IMAGE = "Pattern_0 or Pattern_1 (h, e -> h and e)"
READS_TEXT = "Pattern_2 (h, e -> h)"
ONE_STREAM = "Pattern_3 (h -> h)"


def lists_of(graph: GraphReport) -> list[tuple[str, int]]:
    return [(found.name, found.num_blocks) for found in graph.block_lists]


def gated_blocks(num_blocks: int, width: int = 2 * DIM) -> list[nn.Module]:
    torch.manual_seed(0)
    return [GatedBlock(width) for _ in range(num_blocks)]


def adding_blocks(*steps: float) -> list[nn.Module]:
    return [AddingBlock(step) for step in steps]


def compute_then_hit(model: nn.Module, **settings: object) -> tuple[Tensor, Tensor]:
    """(latents, output) of a hit at 30 degrees whose computed step was at 90."""
    compiled = compile_toy(model, residual_diff_threshold=1.0, **settings)
    computed, reused = toy_steps([90.0, 30.0])
    torch.testing.assert_close(run(compiled, computed), run(model, computed))
    return reused["hidden_states"], run(compiled, reused)


def test_two_lists_are_one_trunk() -> None:
    graph = assert_cached(TwoListDiT(2, 3))
    assert lists_of(graph) == [("blocks", 2), ("single_blocks", 3)]
    assert [found.pattern for found in graph.block_lists] == [TEXT_AND_IMAGE] * 2
    # Prologue, joint, single, epilogue: the last single block, whose text nobody reads, is shared.
    assert (graph.num_blocks, graph.num_segments, graph.num_compiled) == (5, 7, 4)


@pytest.mark.parametrize("num_double", [1, 2])
@pytest.mark.parametrize("num_single", [2, 5])
def test_two_lists_of_any_length(num_double: int, num_single: int) -> None:
    graph = assert_cached(TwoListDiT(num_double, num_single))
    found = lists_of(graph)
    assert found[-1] == ("single_blocks", num_single)
    assert found[:-1] == [("blocks", num_double)]


@pytest.mark.parametrize("num_refiners", [1, 2, 3])
@pytest.mark.parametrize("carries_text", [True, False])
def test_refiner_of_the_text_does_not_join(num_refiners: int, carries_text: bool) -> None:
    graph = assert_cached(JointDiT(4, num_refiners) if carries_text else CrossDiT(num_refiners, 4))
    assert lists_of(graph) == [("blocks", 4)]
    assert graph.block_lists[0].pattern == (TEXT_AND_IMAGE if carries_text else READS_TEXT)
    assert (graph.num_segments, graph.num_compiled) == (6, 3)


class ConcatenatingDiT(CrossDiT):
    """The refined text is put before the image: one stream of both through the blocks."""

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        for refiner in self.refiners:
            e = refiner(e, temb)
        both = torch.cat([e, h], dim=1)
        for block in self.blocks:
            both = block(both, temb)
        return both[:, e.shape[1] :]


def test_refiner_whose_text_is_put_into_the_one_stream_does_not_join() -> None:
    graph = assert_cached(ConcatenatingDiT(2, 4))
    assert lists_of(graph) == [("blocks", 4)]


class LongTextDiT(CrossDiT):
    """As many tokens of text as of the image, so that sizes don't tell them apart."""

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        text = torch.cat([e, e], dim=1)[:, : h.shape[1]]
        return super().trunk(h, temb, text)


def test_refiner_of_text_of_the_image_s_size_does_not_join() -> None:
    graph = assert_cached(LongTextDiT(2, 4))
    assert lists_of(graph) == [("blocks", 4)]


def test_list_of_two_blocks() -> None:
    graph = assert_cached(gated_dit(2))
    assert lists_of(graph) == [("blocks", 2)]
    assert (graph.num_segments, graph.num_compiled) == (4, 3)
    assert graph.region == (1, 2)


def test_closed_form_of_a_hit() -> None:
    latents, output = compute_then_hit(adding_dit(1, 2, 3, 4))
    # One fresh block of 1 * 0.5; the three others as they were at sin 1; all halved.
    torch.testing.assert_close(output, latents + (0.5 + 2 + 3 + 4) / 2)


def test_closed_form_of_a_hit_with_last_blocks() -> None:
    model = adding_dit(1, 2, 3, 4)
    latents, output = compute_then_hit(model, Fn_compute_blocks=2, Bn_compute_blocks=1)
    torch.testing.assert_close(output, latents + (0.5 + 1 + 3 + 2) / 2)


def test_pattern_of_one_stream_without_text() -> None:
    assert assert_cached(gated_dit(4)).block_lists[0].pattern == ONE_STREAM


def test_add_between_blocks() -> None:
    graph = assert_cached(ControlDiT(gated_blocks(4)))
    assert lists_of(graph) == [("blocks", 4)]
    # The first block has no add before it; the other three share.
    assert (graph.num_segments, graph.num_compiled) == (6, 4)


def test_closed_form_of_a_hit_with_adds_between_blocks() -> None:
    model = ControlDiT(adding_blocks(1, 2, 3, 4))
    latents, output = compute_then_hit(model)
    control = toy_steps([30.0])[0]["encoder_hidden_states"].mean(dim=1, keepdim=True)
    # The text is that of the computed step, so the kept controls are as good as fresh ones.
    torch.testing.assert_close(output, latents + (0.5 + 2 + 3 + 4 + 4 * control) / 2)


def test_slices_of_temb_leave_the_blocks_one_function() -> None:
    graph = assert_cached(SlicedTembDiT(gated_blocks(4)))
    assert lists_of(graph) == [("blocks", 4)]
    assert (graph.num_segments, graph.num_compiled) == (6, 3)


def test_closed_form_of_a_hit_with_slices_of_temb() -> None:
    latents, output = compute_then_hit(SlicedTembDiT(adding_blocks(1, 1, 1, 1)))
    # Block i adds i + 1 times the sine: that of the fresh step in the first block alone.
    torch.testing.assert_close(output, latents + (0.5 + 2 + 3 + 4) / 2)


def test_list_in_a_wrapper_module() -> None:
    graph = assert_cached(NestedDiT(gated_blocks(4)))
    assert lists_of(graph) == [("inner.decoder.layers", 4)]
    assert (graph.num_segments, graph.num_compiled) == (6, 3)


def test_blocks_called_by_a_closure() -> None:
    graph = assert_cached(ClosureDiT(gated_blocks(4)))
    assert lists_of(graph) == [("blocks", 4)]
    assert (graph.num_segments, graph.num_compiled) == (6, 3)


class SequentialDiT(ToyDiT):
    """An nn.Sequential is a list too; its blocks take the stream alone."""

    def __init__(self, num_blocks: int) -> None:
        torch.manual_seed(0)
        layers = [nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, DIM)) for _ in range(num_blocks)]
        super().__init__([])
        self.layers = nn.Sequential(*layers)

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        return self.layers(h + temb)


def test_blocks_of_a_sequential() -> None:
    graph = assert_cached(SequentialDiT(4))
    assert lists_of(graph) == [("layers", 4)]
    assert graph.block_lists[0].pattern == ONE_STREAM
    assert (graph.num_segments, graph.num_compiled) == (6, 3)


class TwiceDiT(ToyDiT):
    """Goes through its blocks two times."""

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        return super().trunk(super().trunk(h, temb, e), temb, e)


def test_a_list_run_twice_counts_twice() -> None:
    graph = assert_cached(TwiceDiT(gated_blocks(3)))
    assert lists_of(graph) == [("blocks", 6)]
    assert (graph.num_segments, graph.num_compiled) == (8, 3)


def test_closed_form_of_a_hit_of_a_list_run_twice() -> None:
    model = TwiceDiT(adding_blocks(1, 2, 3))
    latents, output = compute_then_hit(model, Fn_compute_blocks=4)
    # Fresh 1, 2, 3 and the second 1; kept the second 2 and 3.
    torch.testing.assert_close(output, latents + ((1 + 2 + 3 + 1) * 0.5 + 2 + 3) / 2)


def test_last_block_whose_text_nobody_reads_is_shared() -> None:
    graph = assert_cached(JointDiT(4))
    assert lists_of(graph) == [("blocks", 4)]
    assert (graph.num_segments, graph.num_compiled) == (6, 3)


def test_last_block_that_computes_no_text_is_its_own() -> None:
    graph = assert_cached(JointDiT(4, last_drops_text=True))
    assert lists_of(graph) == [("blocks", 4)]
    assert graph.block_lists[0].pattern == TEXT_AND_IMAGE
    assert (graph.num_segments, graph.num_compiled) == (6, 4)


@pytest.mark.parametrize("num_last", [0, 1, 2])
def test_last_block_of_another_structure(num_last: int) -> None:
    model = ToyDiT([*gated_blocks(3), *gated_blocks(1, width=24)])
    graph = assert_cached(model, Bn_compute_blocks=num_last)
    assert lists_of(graph) == [("blocks", 4)]
    assert (graph.num_segments, graph.num_compiled) == (6, 4)


@pytest.mark.parametrize(
    ("num_first", "num_last", "fresh", "stale", "offset"),
    [
        # Steps 1 to 6: behind block 2 the stream is 2x + 6s; added before block 5, it makes
        # 4x + 27s at the end, which is halved. Sine s is 1 where computed and 0.5 on the hit.
        pytest.param(1, 0, 1, 1, (0.5 + 26) / 2, id="inside"),
        pytest.param(1, 1, 2, 0, (0.5 + 14 + 0.5 + 5 + 3) / 2, id="leaves"),
        pytest.param(2, 1, 2, 0, (1.5 + 12 + 1.5 + 3 + 3) / 2, id="leaves-later"),
        pytest.param(3, 1, 2, 0, (3 + 9 + 3 + 3) / 2, id="begins-at-the-border"),
        pytest.param(4, 1, 2, 0, (5 + 5 + 3 + 3) / 2, id="passes-over"),
        pytest.param(4, 0, 1, 1, (5 + 17) / 2, id="enters"),
    ],
)
def test_long_skip_over_a_border(
    num_first: int, num_last: int, fresh: int, stale: int, offset: float
) -> None:
    """`fresh` and `stale`: how often the output holds the latents of the hit, and of the step
    before it: an add inside the region is part of what is kept."""
    model = LongSkipDiT(adding_blocks(1, 2, 3, 4, 5, 6), start=2, stop=5)
    settings = {"Fn_compute_blocks": num_first, "Bn_compute_blocks": num_last}
    latents, output = compute_then_hit(model, **settings)
    computed_latents = toy_steps([90.0])[0]["hidden_states"]
    torch.testing.assert_close(output, fresh * latents + stale * computed_latents + offset)


def test_long_skip_is_cut_and_sound() -> None:
    graph = assert_cached(LongSkipDiT(gated_blocks(6), start=2, stop=5), Bn_compute_blocks=1)
    assert lists_of(graph) == [("blocks", 6)]
    # The block behind the add is of a kind of its own.
    assert (graph.num_segments, graph.num_compiled) == (8, 4)


class FeaturesDiT(ToyDiT):
    """What leaves every block is read after the last one."""

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        features = []
        for block in self.blocks:
            h = block(h, temb)
            features.append(h)
        return torch.stack(features).sum(dim=0)


def test_values_from_inside_the_region_that_are_read_after_it() -> None:
    latents, output = compute_then_hit(FeaturesDiT(adding_blocks(1, 2, 3, 4)))
    # 2x + 0.5 behind the fresh block, and 2, 5 and 9 more behind the kept ones.
    torch.testing.assert_close(output, 4 * latents + (4 * 0.5 + 2 + 5 + 9) / 2)


@pytest.mark.parametrize(
    ("num_blocks", "num_side_blocks", "name", "num_found"),
    [(4, 2, "blocks", 4), (2, 4, "side_blocks", 4)],
)
def test_of_two_towers_the_heavier_is_the_trunk(
    num_blocks: int, num_side_blocks: int, name: str, num_found: int
) -> None:
    model = TowerDiT(gated_blocks(num_blocks), gated_blocks(num_side_blocks))
    graph = assert_cached(model)
    assert lists_of(graph) == [(name, num_found)]
    assert (graph.num_segments, graph.num_compiled) == (num_found + 2, 3)


def test_closed_form_of_a_hit_with_two_towers() -> None:
    model = TowerDiT(adding_blocks(1, 2, 3, 4), adding_blocks(5, 6))
    latents, output = compute_then_hit(model)
    # The side tower always runs.
    torch.testing.assert_close(output, 2 * latents + (0.5 + 2 + 3 + 4 + 11 * 0.5) / 2)
