"""What is replayed of a stream: what was added to it, or where a block makes it anew, its value.

Sums as in `test_find_blocks`: sin(timestep) is 1 at the computed step and 0.5 at the hit."""

import pytest
import torch
from torch import Tensor, nn

import dit_cachegraph as dc
from support.toy_dits import DIM, AddingBlock, Calling, GatedBlock, ToyDiT
from support.toy_runs import compile_toy, run, toy_steps


class MakingBlock(nn.Module):
    """h -> 2 h + step * temb, by way of two layers."""

    def __init__(self, step: float) -> None:
        super().__init__()
        self.up = nn.Linear(DIM, 4 * DIM, bias=False)
        self.down = nn.Linear(4 * DIM, DIM, bias=False)
        nn.init.eye_(self.up.weight)
        nn.init.eye_(self.down.weight).data.mul_(2)
        self.step = nn.Parameter(torch.tensor(step))

    def forward(self, h: Tensor, temb: Tensor) -> Tensor:
        return self.down(self.up(h)) + self.step * temb


class ScalingBlock(AddingBlock):
    """h -> 2 h + step * temb, by a number."""

    def forward(self, h: Tensor, temb: Tensor) -> Tensor:
        return 2 * h + self.step * temb


class TurnedBlock(AddingBlock):
    """h -> h + step * temb, of channels by tokens. It turns h first, and adds none of `before`, a
    tensor of tokens by channels that all blocks read."""

    def forward(self, h: Tensor, temb: Tensor, before: Tensor) -> Tensor:
        added = self.step * temb + 0 * (h.transpose(1, 2) + before)
        return h + added.transpose(1, 2)


class TurnedDiT(ToyDiT):
    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        turned = h.transpose(1, 2)
        for block in self.blocks:
            turned = block(turned, temb, h)
        return turned.transpose(1, 2)


def hit_after_one_step(model: nn.Module, **settings: object) -> tuple[Tensor, nn.Module]:
    compiled = compile_toy(model, residual_diff_threshold=1.0, **settings)
    computed, reused = toy_steps([90.0, 30.0])
    torch.testing.assert_close(run(compiled, computed), run(model, computed))
    output = run(compiled, reused)
    assert dc.summary(compiled).num_hits == 1
    return output, compiled


@torch.no_grad()
def test_what_a_block_makes_anew_is_replayed_as_its_value() -> None:
    model = ToyDiT([AddingBlock(1.0), AddingBlock(2.0), MakingBlock(3.0), AddingBlock(4.0)])
    output, compiled = hit_after_one_step(model)
    # All of it is as the computed step left it, though the first block was computed anew.
    torch.testing.assert_close(output, run(model, toy_steps([90.0, 30.0])[0]))
    (graph,) = dc.summary(compiled).graphs
    assert graph.makers == ("blocks.2",)
    last = "  no sum leads past blocks.2: a hit replays the value, no residual"
    assert str(graph).splitlines()[-1] == last
    assert str(dc.explain(model, **toy_steps([90.0])[0])).splitlines()[-1] == last


@torch.no_grad()
def test_beyond_that_block_residuals_are_replayed() -> None:
    model = ToyDiT([AddingBlock(1.0), MakingBlock(2.0), AddingBlock(3.0), AddingBlock(4.0)])
    output, compiled = hit_after_one_step(model, Fn_compute_blocks=2)
    # Latents x enter doubled: 2 (2x + 0.5) + 1 behind the fresh blocks, and 3 + 4 kept.
    x = toy_steps([90.0, 30.0])[1]["hidden_states"]
    torch.testing.assert_close(output, (2 * (2 * x + 0.5) + 1 + 7) / 2)
    assert dc.summary(compiled).graphs[0].makers == ()


@torch.no_grad()
def test_a_stream_that_a_number_scales_is_still_added_to() -> None:
    model = ToyDiT([AddingBlock(1.0), ScalingBlock(2.0), AddingBlock(3.0)])
    output, compiled = hit_after_one_step(model)
    # Kept of blocks 1 and 2: 2 (2x + 1) + 2 + 3 less what entered, 2x + 1, at the first latents.
    first, x = (step["hidden_states"] for step in toy_steps([90.0, 30.0]))
    torch.testing.assert_close(output, (2 * x + 0.5 + (2 * first + 1) + 5) / 2)
    assert dc.summary(compiled).graphs[0].makers == ()


@torch.no_grad()
def test_values_are_forecast_as_residuals_are() -> None:
    model = ToyDiT([AddingBlock(1.0), MakingBlock(2.0), AddingBlock(3.0)])
    settings = {"predictor": "taylorseer", "taylorseer_order": 1, "max_warmup_steps": 2}
    compiled = compile_toy(model, residual_diff_threshold=1.0, **settings)
    steps = toy_steps([90.0, 30.0, 0.0])
    first, second, forecast = [run(compiled, inputs) for inputs in steps]
    assert dc.summary(compiled).num_hits == 1
    torch.testing.assert_close(forecast, 2 * second - first)


class ControlledBlock(GatedBlock):
    """Reads the embedding, which has the stream's shape, before the stream; a control is added."""

    def forward(self, h: Tensor, temb: Tensor, control: Tensor | None = None) -> Tensor:
        h = h + temb.sin() * self.down(torch.tanh(self.up(self.norm(h))))
        return h if control is None else h + control


class ControlledDiT(ToyDiT):
    """Every other block has a control: two kinds of blocks, in turn."""

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        temb, control = temb.expand_as(h).contiguous(), torch.tanh(h)
        for i, block in enumerate(self.blocks):
            h = block(h, temb, control if i % 2 == 0 else None)
        return h


def test_stream_of_blocks_of_two_kinds_is_what_they_add_to() -> None:
    torch.manual_seed(0)
    model = ControlledDiT([ControlledBlock() for _ in range(4)])
    (graph,) = dc.explain(model, **toy_steps([90.0])[0]).graphs
    assert (graph.num_streams, graph.makers) == (1, ())


class SummingBlock(ControlledBlock):
    """Its sum is one in float32, or in place to a copy."""

    def __init__(self, copies: bool) -> None:
        super().__init__()
        self.copies = copies

    def forward(self, h: Tensor, temb: Tensor, control: Tensor | None = None) -> Tensor:
        update = super().forward(h, temb) - h
        h = h.clone().add_(update) if self.copies else (h.float() + update.float()).to(h.dtype)
        return h if control is None else h + control


class LateControlDiT(ToyDiT):
    """The last block is given a control, and no other one: it is of a kind of its own."""

    def forward(self, hidden_states: Tensor, timestep: Tensor, control: Tensor) -> Tensor:
        h, temb = self.proj_in(hidden_states), self.embed(timestep)
        for block in self.blocks[:-1]:
            h = block(h, temb)
        return self.proj_out(self.blocks[-1](h, temb, control))


@pytest.mark.parametrize("copies", [True, False])
def test_a_control_is_not_the_stream_that_it_is_added_to(copies: bool) -> None:
    torch.manual_seed(0)
    model = LateControlDiT([SummingBlock(copies) for _ in range(3)]).bfloat16()
    given = {name: value.bfloat16() for name, value in toy_steps([90.0])[0].items()}
    given["control"] = given.pop("encoder_hidden_states").new_ones(given["hidden_states"].shape)
    (graph,) = dc.explain(model, **given).graphs
    assert (graph.num_streams, graph.makers) == (1, ())


class LongSkipBlock(GatedBlock):
    """It puts a skip beside its stream, and adds the stream to what a layer makes of both, or not.
    A control is added first and last."""

    def __init__(self, is_added_to: bool) -> None:
        super().__init__()
        self.is_added_to, self.mix = is_added_to, nn.Linear(2 * DIM, DIM)

    def forward(self, h: Tensor, temb: Tensor, control: Tensor | None, skip: Tensor | None):
        h = h if control is None else control + h
        mixed = h if skip is None else self.mix(torch.cat([h, skip], dim=-1))
        mixed = super().forward(mixed, temb)
        h = h + mixed if self.is_added_to else mixed
        return h if control is None else h + control


class LongSkipDiT(ToyDiT):
    """Every other block is given a control, and the later half skips."""

    def forward(self, hidden_states: Tensor, timestep: Tensor, control: Tensor) -> Tensor:
        h, temb, skips = self.proj_in(hidden_states), self.embed(timestep), []
        for i, block in enumerate(self.blocks):
            h = block(h, temb, control if i % 2 else None, skips.pop() if i >= 3 else None)
            skips += [h] if i < 3 else []
        return self.proj_out(h)


@pytest.mark.parametrize("is_added_to", [True, False])
def test_neither_a_control_nor_a_skip_is_the_stream_beside_it(is_added_to: bool) -> None:
    torch.manual_seed(0)
    model = LongSkipDiT([LongSkipBlock(is_added_to) for _ in range(6)])
    given = toy_steps([90.0])[0]
    given["control"] = given.pop("encoder_hidden_states").new_ones(given["hidden_states"].shape)
    (graph,) = dc.explain(model, **given).graphs
    made = ("blocks.3", "blocks.4", "blocks.5")
    assert (graph.num_streams, graph.makers) == (1, () if is_added_to else made)


class PairBlock(AddingBlock):
    """(h, e) -> (h + step * temb, e + 2 step * temb)."""

    def forward(self, h: Tensor, e: Tensor, temb: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return h + self.step * temb, e + 2 * self.step * temb


class MakingPairBlock(PairBlock):
    """The same of a text that is made anew."""

    def forward(self, h: Tensor, e: Tensor, temb: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return h + self.step * temb, torch.tanh(e) + 2 * self.step * temb


class JoinedDiT(ToyDiT):
    """Text and image beside each other, then as one sequence (FLUX.2, Chroma, AuraFlow). What comes
    out is the image, plus the mean of the text."""

    def __init__(self, pairs: list[nn.Module], singles: list[nn.Module]) -> None:
        super().__init__(pairs)
        self.singles = nn.ModuleList(singles)

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        assert e is not None
        for block in self.blocks:
            h, e = block(h, e, temb)
        both = torch.cat([e, h], dim=1)
        for single in self.singles:
            both = single(both, temb)
        return both[:, e.shape[1] :] + both[:, : e.shape[1]].mean(1, keepdim=True)


def joined(*pairs: nn.Module) -> nn.Module:
    return JoinedDiT(list(pairs), [Calling(3.0), Calling(4.0)])


@torch.no_grad()
@pytest.mark.parametrize(("first", "fresh_image", "fresh_text"), [(0, 0, 0), (1, 1, 2), (3, 6, 9)])
def test_streams_that_become_one_are_added_to_as_one(first, fresh_image, fresh_text) -> None:
    """A hit goes by its own latents, wherever the region begins."""
    compiled = compile_toy(joined(PairBlock(1.0), PairBlock(2.0)))
    of_some = {"Fn_compute_blocks": first, "residual_diff_threshold": 1.0}
    even = {"rule": "even", "every": 2, "max_warmup_steps": 1}
    dc.configure(compiled, **(of_some if first else even))
    computed, inputs = toy_steps([90.0, 30.0])
    run(compiled, computed)
    output = run(compiled, inputs)
    assert dc.summary(compiled).num_hits == 1
    image = 2 * inputs["hidden_states"] + 10 - fresh_image / 2
    text = inputs["encoder_hidden_states"].mean(1, keepdim=True) + 13 - fresh_text / 2
    torch.testing.assert_close(output, (image + text) / 2)


@torch.no_grad()
@pytest.mark.parametrize(("first", "fresh"), [(1, 3), (2, 7)])
def test_a_list_that_runs_on_streams_in_one_is_reused_by_itself(first, fresh) -> None:
    """By what its own first blocks add to both, from where they become one."""
    singles = [Calling(3.0), Calling(4.0), Calling(5.0)]
    pairs = [PairBlock(1.0), PairBlock(2.0), PairBlock(6.0)]
    compiled = compile_toy(JoinedDiT(pairs, singles))
    part = {"rule": "dbcache", "Fn_compute_blocks": 1, "max_warmup_steps": 1}
    own = [{**part, "residual_diff_threshold": r} for r in (0.6, 0.7)]
    dc.configure(compiled, block_lists=[own[0], {**own[1], "Fn_compute_blocks": first}])
    computed, inputs = toy_steps([90.0, 30.0])
    run(compiled, computed)
    output = run(compiled, inputs)
    (step,) = dc.summary(compiled).steps[1:]
    assert (step.skipped, step.diff) == (((1, 3), (3 + first, 6)), pytest.approx(0.5))
    image = 2 * inputs["hidden_states"] + 21 - (1 + fresh) / 2
    text = inputs["encoder_hidden_states"].mean(1, keepdim=True) + 30 - (2 + fresh) / 2
    torch.testing.assert_close(output, (image + text) / 2)


class BoundedJoinedDiT(JoinedDiT):
    """What is put beside the image is something that is made of the text."""

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        assert e is not None
        for block in self.blocks:
            h, e = block(h, e, temb)
        both = torch.cat([torch.tanh(e), h], dim=1)
        for single in self.singles:
            both = single(both, temb)
        return both[:, e.shape[1] :]


@torch.no_grad()
def test_a_list_that_runs_on_something_else_than_the_streams_is_refused() -> None:
    singles = [Calling(3.0), Calling(4.0), Calling(5.0)]
    pairs = [PairBlock(1.0), PairBlock(2.0), PairBlock(6.0)]
    compiled = compile_toy(BoundedJoinedDiT(pairs, singles))
    part = {"rule": "dbcache", "Fn_compute_blocks": 1, "max_warmup_steps": 1}
    dc.configure(compiled, block_lists=[part, {**part, "residual_diff_threshold": 0.5}])
    with pytest.raises(dc.InvalidConfig, match="blocks 3 to 3 could be compared: .* over all list"):
        run(compiled, toy_steps([90.0])[0])


@torch.no_grad()
def test_what_becomes_one_after_a_part_was_made_anew_is_replayed_as_its_value() -> None:
    model = joined(MakingPairBlock(1.0), MakingPairBlock(2.0))
    output, _ = hit_after_one_step(model)
    torch.testing.assert_close(output, run(model, toy_steps([90.0, 30.0])[0]))


@torch.no_grad()
def test_what_a_reuse_misses_of_streams_that_became_one_is_told_for_each_sample() -> None:
    model = joined(PairBlock(1.0), PairBlock(2.0))
    compiled = compile_toy(model, residual_diff_threshold=0.0, observe_error=True)
    steps = toy_steps([90.0, 30.0])
    for step in steps:
        step["hidden_states"][1] *= 10
        run(compiled, step)
    h, e = 2 * steps[1]["hidden_states"] + 10 / 2, steps[1]["encoder_hidden_states"] + 13 / 2
    # The first block is computed anew: a reuse has 9 and 11 of the others in place of half of it.
    missed = DIM * (h.shape[1] * 9 + e.shape[1] * 11) / 2
    size = h.abs().sum((1, 2)) + e.abs().sum((1, 2))
    expected = (missed / size).max().item()
    assert dc.summary(compiled).steps[1].observed_error == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def test_a_stream_that_is_carried_turned_is_added_to() -> None:
    """Where something else that blocks read had the shape of the stream turned back, each block was
    given the view that the next one makes first, and so the stream was no more one of the trunk's.
    """
    model = TurnedDiT([TurnedBlock(1.0), TurnedBlock(2.0), TurnedBlock(3.0)])
    output, compiled = hit_after_one_step(model)
    reused = toy_steps([90.0, 30.0])[1]
    # The first block runs, at half of the sine.
    torch.testing.assert_close(output, reused["hidden_states"] + 0.5 * (0.5 * 1 + 2 + 3))
    (graph,) = dc.summary(compiled).graphs
    assert (graph.makers, graph.num_blocks) == ((), 3)
