"""Calls of which the latents have no element: no sample, no token. They give what eager gives."""

import pytest
import torch

import dit_cachegraph as dc
from support.toy_dits import DIM, NUM_TOKENS, gated_dit
from support.toy_runs import compile_toy, run, toy_steps


@pytest.mark.parametrize("size", [(2, 0), (0, NUM_TOKENS), (1, 1)], ids=str)
@pytest.mark.parametrize("settings", [{"residual_diff_threshold": 1.0}, {"preset": "balanced"}])
def test_it_runs_and_is_cached(size, settings) -> None:
    model = gated_dit(4)
    compiled = torch.compile(
        model, backend="cachedit", options={"inner_backend": "eager", **settings}
    )
    for inputs in toy_steps([90.0, 60.0, 30.0]):
        call = {"hidden_states": torch.ones(*size, DIM), "timestep": inputs["timestep"][:1]}
        torch.testing.assert_close(run(compiled, call), run(model, call))
    assert dc.summary(compiled).is_cached


def test_a_size_that_was_zero_for_a_call() -> None:
    model = gated_dit(4)
    compiled = compile_toy(model, dynamic=True, residual_diff_threshold=1.0)
    for num_samples in (2, 0, 3):
        (inputs,) = toy_steps([90.0])
        call = {
            "hidden_states": inputs["hidden_states"][:1].expand(num_samples, -1, -1),
            "timestep": inputs["timestep"][:1].expand(num_samples),
        }
        torch.testing.assert_close(run(compiled, call), run(model, call))
