"""The driver on a GPU: it decides as on the CPU, by each rule and with each predictor, and its only
waits are those for what it reads."""

import warnings

import pytest
import torch

import dit_cachegraph as dc
from dit_cachegraph.layers import PREDICTOR_KINDS
from support.every_rule import NUM_STEPS, ONE_REGION, PRUNED, SCHEDULES
from support.toy_dits import TwoListDiT
from support.toy_runs import toy_steps

TIMES = [90.0 - 9 * step for step in range(NUM_STEPS)]
# Those that a toy has no modulated input for, or no grid of tokens, are left out.
RULES = {
    rule: options
    for rule, options in {**SCHEDULES, **ONE_REGION, **PRUNED}.items()
    if rule not in ("teacache", "seacache")
}
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


@torch.no_grad()
def drawn(device: str, **settings):
    """What each step returns and decides."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = TwoListDiT(2, 4).to(device).requires_grad_(False)
    options = {"inner_backend": "eager", **settings}
    compiled = torch.compile(model, backend="cachedit", options=options)
    steps = [{n: t.to(device) for n, t in inputs.items()} for inputs in toy_steps(TIMES)]
    text = steps[0]["encoder_hidden_states"]
    outputs = [compiled(**{**inputs, "encoder_hidden_states": text}).cpu() for inputs in steps]
    return outputs, [step.hit for step in dc.summary(model).steps]


@pytest.mark.parametrize("predictor", sorted(PREDICTOR_KINDS.by_name))
@pytest.mark.parametrize("rule", RULES)
def test_decisions_are_those_of_the_cpu(rule, predictor):
    settings = {"rule": rule, **RULES[rule], "predictor": predictor}
    expected, expected_hits = drawn("cpu", **settings)
    outputs, hits = drawn("cuda", **settings)
    assert any(expected_hits)
    assert hits == expected_hits
    for output, wanted in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("rule", RULES)
def test_nothing_synchronises_but_what_it_waits_for(rule):
    drawn("cuda", rule=rule, **RULES[rule])  # What the first image looks up stays.
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            drawn("cuda", rule=rule, **RULES[rule])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    places = [f"{w.filename}:{w.lineno}" for w in said if "synchroniz" in str(w.message)]
    assert not [place for place in places if "dit_cachegraph" in place]
