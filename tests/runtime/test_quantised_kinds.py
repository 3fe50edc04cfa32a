"""Every kind of quantised weight that runs on a CPU, from the library that makes it."""

import pytest
import torch
from torch import Tensor, nn

import dit_cachegraph as dc
from support.quantised_kinds import KINDS, Kind, build, int8_of_bitsandbytes, quantised_layers
from support.running import compile_cached, relative_error, run_all
from support.tiny_models import FLUX, WAN, TinyModel, trajectory

pytestmark = [pytest.mark.slow, pytest.mark.e2e]

BOLD = {"residual_diff_threshold": 1.0, "max_warmup_steps": 2, "Fn_compute_blocks": 1}
NUM_STEPS = 9
TINY = pytest.mark.parametrize("tiny", [FLUX, WAN], ids=lambda tiny: tiny.name)


def steps_of(tiny: TinyModel) -> list[dict[str, object]]:
    inputs = tiny.make_inputs(tiny.build(2), batch=1, size=4, text_tokens=6, seed=0)
    return list(trajectory(tiny, inputs, NUM_STEPS))


@torch.no_grad()
def outputs_of(model: nn.Module, steps: list[dict[str, object]]) -> list[Tensor]:
    return [model(**step)[0] for step in steps]


@torch.no_grad()
def change(part: Tensor) -> None:
    """Its rows in reverse order, written in place."""
    rows = part.detach().clone(memory_format=torch.contiguous_format).view(torch.uint8)
    part.copy_(rows.flip(0).view(part.dtype))


def compiled_at(depth: int, kind: Kind, inner_backend: str, tiny: TinyModel) -> nn.Module:
    torch._dynamo.reset()
    model = kind.quantise(build(tiny, depth), tiny.block_lists)
    return compile_cached(model, inner_backend, enabled=False)


@TINY
@pytest.mark.parametrize("inner_backend", ["eager", "inductor"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_exact_without_the_cache_and_hits_with_it(kind: Kind, inner_backend: str, tiny: TinyModel):
    compiled = compiled_at(3, kind, inner_backend, tiny)
    model, steps = compiled._orig_mod, steps_of(tiny)
    plain = torch.compile(model, backend=inner_backend, fullgraph=True)
    tolerance = 0.0 if inner_backend == "eager" else kind.tolerance
    for ran, expected in zip(run_all(compiled, steps), outputs_of(plain, steps), strict=True):
        assert relative_error(ran.output, expected) <= tolerance
    dc.reset(compiled)
    dc.configure(compiled, enabled=True, **BOLD)
    assert [ran.hit for ran in run_all(compiled, steps[:3])] == [False, False, True]
    weight = quantised_layers(model, tiny.block_lists)[-1].weight
    for i, part in enumerate(kind.parts_of(weight)):
        change(part)
        computed, reused = run_all(compiled, steps[3 + 2 * i : 5 + 2 * i])
        assert (computed.hit, reused.hit) == (False, True), (i, computed.reason)
        (expected,) = outputs_of(plain, steps[3 + 2 * i : 4 + 2 * i])
        assert relative_error(computed.output, expected) <= tolerance
    num_compiled = dc.summary(compiled).graphs[0].num_compiled
    deeper = compiled_at(5, kind, inner_backend, tiny)
    dc.configure(deeper, enabled=True, **BOLD)
    assert [ran.hit for ran in run_all(deeper, steps[:3])] == [False, False, True]
    assert dc.summary(deeper).graphs[0].num_compiled == num_compiled


def test_int8_of_bitsandbytes_is_refused_for_what_it_writes():
    """Its layers point their weight at what they keep of it, at each call."""
    model = int8_of_bitsandbytes(build(FLUX, 3), FLUX.block_lists)
    first, second, *_ = steps_of(FLUX)
    expected = outputs_of(model, [first, second])
    compiled = compile_cached(model, "eager", **BOLD)
    sentence = r"writes in place \(`set_` at modules.py:\d+\) to `\w+`, an argument of the model"
    with pytest.warns(dc.NotCachedWarning, match=sentence):
        (output,) = outputs_of(compiled, [first])
    for actual, plain in zip([output, *outputs_of(compiled, [second])], expected, strict=True):
        torch.testing.assert_close(actual, plain)
    with pytest.raises(dc.NotCached, match=sentence):
        dc.check(compiled)
