"""Blocks that carry a mask of live tokens beside their stream: what they did to it can't be said as
a difference, so a hit puts the mask of the last computed step in its place."""

import pytest
import torch
from torch import Tensor

import dit_cachegraph as dc
from support.toy_dits import AddingBlock, ToyDiT
from support.toy_runs import assert_cached, compile_toy, run, toy_steps

BOUND = 4.0
NUM_BLOCKS = 4


class MaskingBlock(AddingBlock):
    """Adds to the live tokens; those that grow beyond the bound live no more."""

    def forward(self, h: Tensor, mask: Tensor, temb: Tensor) -> tuple[Tensor, Tensor]:
        h = h + self.step * temb * mask
        return h, mask & (h.amax(dim=-1, keepdim=True) < BOUND)


class MaskDiT(ToyDiT):
    """All tokens live where the blocks begin; the dead ones are zero in the end."""

    def __init__(self) -> None:
        super().__init__([MaskingBlock(0.5) for _ in range(NUM_BLOCKS)])

    def carried(self, h: Tensor, temb: Tensor) -> tuple[Tensor, Tensor]:
        mask = h[..., :1] < torch.inf
        for block in self.blocks:
            h, mask = block(h, mask, temb)
        return h, mask

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        h, mask = self.carried(h, temb)
        return h * mask


def test_it_is_cached():
    assert assert_cached(MaskDiT()).region == (1, NUM_BLOCKS)


@pytest.mark.parametrize(
    "predictor",
    [
        {"predictor": "replay"},
        {"predictor": "taylorseer", "enable_encoder_calibrator": True},
        {"predictor": "taylorseer", "calibrator_cache_type": "hidden_states"},
    ],
    ids=str,
)
@torch.no_grad()
def test_a_hit_has_the_mask_of_the_last_computed_step(predictor):
    """Also where the stream beside it is forecast from two steps."""
    steps = toy_steps([90.0, 80.0, 10.0])
    model = MaskDiT()
    compiled = compile_toy(model)
    dc.configure(compiled, rule="fixed", compute_mask=(1, 1, 0), **predictor)
    for inputs in steps:
        actual = run(compiled, inputs)
    assert dc.summary(compiled).steps[-1].skipped == ((0, NUM_BLOCKS),)
    entered = [model.proj_in(step["hidden_states"]) for step in steps]
    carried = [
        model.carried(h, model.embed(step["timestep"]))
        for h, step in zip(entered, steps, strict=True)
    ]
    # What is kept is the difference to what entered, or whole.
    share = 0.0 if "calibrator_cache_type" in predictor else 1.0
    pairs = zip(entered, carried, strict=True)
    older, last, _ = [left - share * h for h, (left, _) in pairs]
    (_, mask), (_, mask_of_now) = carried[1:]
    assert mask.any() and not mask.equal(mask_of_now)
    forecast = last if predictor["predictor"] == "replay" else 2 * last - older
    torch.testing.assert_close(actual, model.proj_out((share * entered[2] + forecast) * mask))


@pytest.mark.parametrize(
    "settings", [{}, {"rule": "dbprune"}, {"observe_error": True}, {"dry_run": (0.1,)}], ids=str
)
def test_rules_and_measurements_pass_it_by(settings):
    model = MaskDiT()
    compiled = compile_toy(model, rule="dbcache")
    dc.configure(compiled, residual_diff_threshold=0.0, **settings)
    for inputs in toy_steps([90.0, 80.0, 70.0]):
        torch.testing.assert_close(run(compiled, inputs), run(model, inputs))
