"""What a step holds, measured: peaks of live bytes in the allocator while a step runs."""

import gc
import weakref

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import dit_cachegraph as dc
from support.running import compile_cached
from support.tiny_models import FLUX, build_flux, trajectory
from support.toy_dits import GatedBlock, ToyDiT, toy_inputs
from support.toy_runs import compile_toy

pytestmark = pytest.mark.e2e

SIZE, TEXT_TOKENS, BATCH = 12, 16, 2


def peak_nbytes(compiled, kwargs) -> int:
    """The most bytes that were allocated at once during one step, beyond those before it."""
    gc.collect()
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        compiled(**kwargs)
    live = peak = 0
    for event in run.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


@pytest.fixture(scope="module")
def peaks():
    model = build_flux(1, 3)
    inputs = FLUX.make_inputs(model, batch=BATCH, size=SIZE, text_tokens=TEXT_TOKENS, seed=0)
    steps = list(trajectory(FLUX, inputs, 6))
    plain = torch.compile(model)
    with torch.no_grad():
        plain(**steps[0])
    found = {"plain": peak_nbytes(plain, steps[1])}
    torch._dynamo.reset()
    compiled = compile_cached(model, "inductor", Fn_compute_blocks=1, max_warmup_steps=0)
    with torch.no_grad():
        compiled(**steps[0])
    dc.configure(compiled, residual_diff_threshold=1e-9)
    found["computed"] = peak_nbytes(compiled, steps[2])
    dc.configure(compiled, residual_diff_threshold=1.0)
    found["hit"] = peak_nbytes(compiled, steps[3])
    assert [s.hit for s in dc.summary(model).steps] == [False, False, True]
    width = model.config.num_attention_heads * model.config.attention_head_dim
    found["hidden"] = BATCH * (SIZE**2) * width * 4
    found["both streams"] = BATCH * (SIZE**2 + TEXT_TOKENS) * width * 4
    found["kept"] = dc.summary(model).state_nbytes
    return found


def test_a_computed_step_holds_little_more_than_plain_compile(peaks):
    bound = peaks["plain"] + 2 * peaks["both streams"] + peaks["kept"]
    assert peaks["computed"] <= bound


def test_a_hit_holds_less_than_a_computed_step(peaks):
    assert peaks["hit"] < peaks["computed"]


def test_what_is_kept_is_the_probe_and_a_residual(peaks):
    assert peaks["kept"] == 2 * peaks["hidden"]


def test_values_are_dropped_after_their_last_use():
    """Depth costs no memory: a driver that keeps every block's output would."""

    def peak_of(num_single: int) -> int:
        torch._dynamo.reset()
        model = build_flux(1, num_single)
        inputs = FLUX.make_inputs(model, batch=2, size=8, text_tokens=8, seed=0)
        compiled = compile_cached(model, Fn_compute_blocks=1, residual_diff_threshold=0.0)
        (first, second) = trajectory(FLUX, inputs, 2)
        with torch.no_grad():
            compiled(**first)
        return peak_nbytes(compiled, second)

    assert peak_of(8) == pytest.approx(peak_of(2), rel=0.02)


def test_a_call_that_compiles_keeps_none_of_its_callers_variables():
    """To look into a frame makes Python, to 3.12, hold what its variables held until it ends."""
    compiled = compile_toy(ToyDiT([GatedBlock() for _ in range(4)]))

    def pipeline() -> bool:
        inputs = toy_inputs(80.0)
        latents = weakref.ref(inputs["hidden_states"])
        with torch.no_grad():
            compiled(**inputs)
        del inputs
        return latents() is None

    assert pipeline()
