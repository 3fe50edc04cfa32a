"""A list of blocks of the latents alone is of the trunk, ahead of one with text beside them."""

import pytest
import torch
from torch import Tensor, nn

import dit_cachegraph as dc
from support.toy_dits import (
    DIM,
    NUM_TOKENS,
    Calling,
    GatedBlock,
    JointBlock,
    JointDiT,
    ToyDiT,
)
from support.toy_runs import assert_cached, compile_toy, run, toy_steps


class AddingJointBlock(nn.Module):
    """(h, e) -> (h + step * temb + 0 * e, e + step * temb)."""

    def __init__(self, step: float) -> None:
        super().__init__()
        self.block = Calling(step)

    def forward(self, h: Tensor, e: Tensor, temb: Tensor) -> tuple[Tensor, Tensor]:
        read = 0 * e.mean(dim=1, keepdim=True)
        return self.block(h, temb) + read, self.block(e, temb)


class ModesDiT(ToyDiT):
    """FLUX.3 in small: text, image, and tokens of a reference picture run through lists of their
    own, then through joint blocks, where the reference follows the image."""

    def __init__(self, ahead: list[nn.Module], joint: list[nn.Module], has_reference: bool) -> None:
        super().__init__(joint)
        self.texts = nn.ModuleList(Calling(0.1) for _ in range(2))
        self.images = nn.ModuleList(ahead)
        self.references = nn.ModuleList(Calling(0.1) for _ in range(2))
        self.has_reference = has_reference

    def ahead(self, h: Tensor, temb: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        still = torch.ones_like(temb)
        for block in self.texts:
            e = block(e, still)
        for block in self.images:
            h = block(h, temb)
        return h, e

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        assert e is not None
        reference = 2 * e[:, :2]
        h, e = self.ahead(h, temb, e)
        if self.has_reference:
            for block in self.references:
                reference = block(reference, torch.ones_like(temb))
            h = torch.cat([h, reference], dim=1)
        for block in self.blocks:
            h, e = block(h, e, temb)
        return h[:, :NUM_TOKENS]


def modes_dit(has_reference: bool = False) -> ModesDiT:
    ahead = [Calling(step) for step in (1, 2, 3)]
    return ModesDiT(ahead, [AddingJointBlock(step) for step in (4, 5, 6)], has_reference)


@pytest.mark.parametrize("has_reference", [False, True])
@pytest.mark.parametrize("num_first", [1, 3, 4])
def test_a_hit_goes_by_its_own_latents(has_reference: bool, num_first: int) -> None:
    """Neither text nor reference moves from step to step: what makes them ready always runs."""
    model = modes_dit(has_reference)
    compiled = compile_toy(model, Fn_compute_blocks=num_first, residual_diff_threshold=1.0)
    computed, reused = toy_steps([90.0, 30.0])
    torch.testing.assert_close(run(compiled, computed), run(model, computed))
    output = run(compiled, reused)
    report = dc.summary(compiled)
    (graph,) = report.graphs
    assert [(b.name, b.num_blocks, b.pattern[:9]) for b in graph.block_lists] == [
        ("images", 3, "Pattern_3"),
        ("blocks", 3, "Pattern_0"),
    ]
    assert graph.num_streams == 2 + has_reference
    assert report.steps[-1].num_skipped == 6 - num_first
    steps = [1, 2, 3, 4, 5, 6]
    added = 0.5 * sum(steps[:num_first]) + sum(steps[num_first:])
    torch.testing.assert_close(output, reused["hidden_states"] + added / 2)


@pytest.mark.parametrize("has_reference", [False, True])
def test_under_inductor(has_reference: bool) -> None:
    torch.manual_seed(0)
    ahead, joint = [GatedBlock() for _ in range(3)], [JointSwapped() for _ in range(3)]
    model = ModesDiT(ahead, joint, has_reference)
    assert assert_cached(model, inner_backend="inductor").num_blocks == 6


class JointSwapped(JointBlock):
    def forward(self, h: Tensor, e: Tensor, temb: Tensor) -> tuple[Tensor, Tensor]:
        e, h = super().forward(h, e, temb)
        return h, e


class EditingDiT(ModesDiT):
    """Text and reference are as many tokens as the image, so that neither is told by its shape. The
    reference stands at a time of its own, or at the image's."""

    def __init__(self, is_still: bool) -> None:
        ahead = [Calling(step) for step in (1, 2, 3)]
        super().__init__(ahead, [AddingJointBlock(step) for step in (4, 5)], False)
        self.is_still = is_still

    def ahead(self, h: Tensor, temb: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        h, given = super().ahead(h, temb, e)
        reference = 2 * e
        for block in self.references:
            reference = block(reference, torch.ones_like(temb) if self.is_still else temb)
        return torch.cat([h, reference], dim=1), given


@pytest.mark.parametrize(("is_still", "lists"), [(True, ["images", "blocks"]), (False, ["blocks"])])
def test_another_picture_is_told_by_its_time(is_still: bool, lists: list[str]) -> None:
    model = EditingDiT(is_still)
    compiled = compile_toy(model, residual_diff_threshold=0.0)
    text = torch.randn(2, NUM_TOKENS, DIM)
    for inputs in toy_steps([90.0, 60.0]):
        given = {**inputs, "encoder_hidden_states": text}
        torch.testing.assert_close(run(compiled, given), run(model, given))
    (graph,) = dc.summary(compiled).graphs
    assert [found.name for found in graph.block_lists] == lists


class TextOfLatentsDiT(ModesDiT):
    """The text has something of the latents in it: between the lists it would not move."""

    def ahead(self, h: Tensor, temb: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        e = e + h.mean(dim=1, keepdim=True)
        return super().ahead(h, temb, e)


class AddedDiT(ModesDiT):
    """What the blocks ahead make is added to what passes them by, as by a control."""

    def ahead(self, h: Tensor, temb: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        control, e = super().ahead(h + 1, temb, e)
        return h + control, e


@pytest.mark.parametrize("kind", [TextOfLatentsDiT, AddedDiT])
def test_other_lists_ahead_always_run(kind: type[ModesDiT]) -> None:
    ahead = [Calling(step) for step in (1, 2, 3)]
    graph = assert_cached(kind(ahead, [AddingJointBlock(step) for step in (4, 5)], False))
    assert [found.name for found in graph.block_lists] == ["blocks"]


class SkippingDiT(ModesDiT):
    """Something of the list ahead goes past the joint blocks too."""

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        assert e is not None
        h, e = self.ahead(h, temb, e)
        ahead = h
        for block in self.blocks:
            h, e = block(h, e, temb)
        return h + ahead


def test_what_the_list_ahead_hands_over_may_be_read_once_more() -> None:
    ahead = [Calling(step) for step in (1, 2, 3)]
    graph = assert_cached(SkippingDiT(ahead, [AddingJointBlock(step) for step in (4, 5)], False))
    assert [found.name for found in graph.block_lists] == ["images", "blocks"]


class GlobalSkipDiT(JointDiT):
    """The head reads what entered the blocks too."""

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        return h + super().trunk(h, temb, e)


def test_list_that_makes_the_text_ready_always_runs() -> None:
    """So that a step is told by its image, also where that goes past the blocks as well: text
    moves little or not at all."""
    graph = assert_cached(GlobalSkipDiT(4, num_refiners=2))
    assert [found.name for found in graph.block_lists] == ["blocks"]
