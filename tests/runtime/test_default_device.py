"""Calls where new tensors go to another device by default, as after
`torch.set_default_device("cuda")`: what the cache makes for itself lies where it works with it."""

import pytest
import torch

import dit_cachegraph as dc
from support.toy_dits import gated_dit
from support.toy_runs import run, toy_steps

STEPS = toy_steps([90.0, 85.0, 80.0, 75.0, 70.0, 65.0])
SETTINGS = [
    {},
    {"rule": "dbcache", "max_warmup_steps": 1, "residual_diff_threshold": 1.0},
    {"rule": "dbprune", "max_warmup_steps": 1, "residual_diff_threshold": 1.0},
    {"rule": "easycache", "max_warmup_steps": 1},
    {"rule": "even", "predictor": "dmd"},
    {"error_tolerance": 1.0, "observe_error": True},
]


def hits_and_outputs(settings, default: str) -> tuple[list[bool], list[torch.Tensor]]:
    torch._dynamo.reset()
    options = {"inner_backend": "eager", **(settings or {"error_tolerance": 1.0})}
    compiled = torch.compile(gated_dit(4), backend="cachedit", options=options)
    with torch.device(default):
        outputs = [run(compiled, inputs) for inputs in STEPS]
    return [step.hit for step in dc.summary(compiled).steps], outputs


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_it_decides_and_gives_what_it_does_without(settings) -> None:
    expected_hits, expected = hits_and_outputs(settings, "cpu")
    hits, outputs = hits_and_outputs(settings, "meta")
    assert hits == expected_hits
    torch.testing.assert_close(outputs, expected)
    # The latents move too far for this rule.
    assert any(hits) or settings.get("rule") == "easycache"
