"""Strides are part of a segment's contract, and a wrong one is silent garbage: computed steps and
hits under Inductor, at batch 2 and 3, with its own size checks on."""

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

import dit_cachegraph as dc
from oracles.dbcache import EagerOracle
from support.running import assert_same_run, compile_cached, run_all
from support.tiny_models import DIT, FLUX, QWEN, SD3, WAN, build_flux, trajectory
from support.toy_dits import DIM, GatedBlock, ToyDiT

pytestmark = pytest.mark.e2e

SETTINGS = {"residual_diff_threshold": 0.8, "max_warmup_steps": 2, "Fn_compute_blocks": 1}
# Inductor asserts sizes and strides of every input of every segment.
CHECKED = {"size_asserts": True, "alignment_asserts": True}


def steps_of(tiny, model, batch, size=3, num_steps=5, seed=0, text_tokens=5):
    inputs = tiny.make_inputs(model, batch=batch, size=size, text_tokens=text_tokens, seed=seed)
    return list(trajectory(tiny, inputs, num_steps, seed=seed))


def check(compiled, model, tiny, steps, **settings):
    settings = {**SETTINGS, **settings}
    dc.configure(compiled, **settings)
    ran = run_all(compiled, steps)
    oracle = EagerOracle(model, tiny.block_lists, tiny.stream_outputs, **settings)
    assert_same_run(ran, oracle, steps, tolerance=5e-5)
    return sum(r.hit for r in ran)


@pytest.mark.parametrize(
    "tiny",
    [FLUX, *(pytest.param(t, marks=pytest.mark.slow) for t in (WAN, QWEN, SD3, DIT))],
    ids=lambda t: t.name,
)
def test_computed_steps_and_hits_at_batch_2_and_3(tiny):
    depth = 5
    model = tiny.build(depth)
    compiled = torch.compile(model, backend="cachedit", options={"inductor": CHECKED})
    for batch in (2, 3):
        steps = steps_of(tiny, model, batch, seed=batch)
        for first, last in ((1, 0), (2, 1), (3, 2), (4, 0)):
            num_hits = check(
                compiled, model, tiny, steps, Fn_compute_blocks=first, Bn_compute_blocks=last
            )
            assert num_hits >= 1 or first + last == depth


def test_a_region_that_begins_before_on_and_after_the_border_of_two_lists():
    """FLUX's single blocks return two views of one tensor."""
    model = build_flux(2, 3)
    compiled = compile_cached(model, "inductor", inductor=CHECKED)
    steps = steps_of(FLUX, model, 2)
    for first in (1, 2, 3):
        for last in (0, 1, 2):
            num_hits = check(
                compiled, model, FLUX, steps, Fn_compute_blocks=first, Bn_compute_blocks=last
            )
            assert num_hits >= 1 or first + last == 5
    assert dc.summary(model).graphs[0].num_compiled == 4


@pytest.mark.slow
@pytest.mark.parametrize("tiny", [FLUX, WAN], ids=lambda t: t.name)
def test_resolutions_found_dynamic(tiny):
    """The second size makes a graph with symbols; a third and a fourth use it."""
    model = tiny.build(4)
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(model, backend="cachedit", options={"inductor": CHECKED})
    num_graphs = []
    for size, text_tokens in ((3, 5), (4, 5), (5, 5), (6, 5)):
        steps = steps_of(tiny, model, 2, size=size, text_tokens=text_tokens)
        assert check(compiled, model, tiny, steps) >= 1
        num_graphs.append(counters["stats"]["unique_graphs"])
    assert num_graphs == [1, 2, 2, 2]
    assert not dc.summary(model).refusals


def test_bfloat16_at_batch_2():
    model = build_flux(2, 3).to(torch.bfloat16)
    compiled = compile_cached(model, "inductor", inductor=CHECKED)
    dc.configure(compiled, **SETTINGS)
    steps = steps_of(FLUX, model, 2)
    ran = run_all(compiled, steps)
    oracle = EagerOracle(model, FLUX.block_lists, FLUX.stream_outputs, **SETTINGS)
    for step, kwargs in zip(ran, steps, strict=True):
        expected = oracle.step(**kwargs)
        assert step.hit == expected.hit
        torch.testing.assert_close(step.output, expected.output, rtol=0.1, atol=0.1)


class PaddedTextBlock(GatedBlock):
    def forward(self, h: Tensor, temb: Tensor, e: Tensor) -> Tensor:
        return super().forward(h + e.mean(1, keepdim=True), temb)


class PaddedTextDiT(ToyDiT):
    """Its blocks are given a part of a concatenation."""

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor) -> Tensor:
        text = torch.cat([e, e], dim=1)[:, : e.shape[1]]
        for block in self.blocks:
            h = block(h, temb, text)
        return h


@torch.no_grad()
def test_a_part_of_a_concatenation_where_sizes_are_open():
    """Inductor makes the part alone then, while the blocks were compiled for one with gaps, and
    read beyond its end."""
    model = PaddedTextDiT([PaddedTextBlock() for _ in range(2)])
    compiled = torch.compile(model, backend="cachedit", dynamic=True)
    given = torch.randn(3, 6, DIM), torch.tensor([90.0, 90.0, 90.0]), torch.randn(3, 4, DIM)
    torch.testing.assert_close(compiled(*given), model(*given))
