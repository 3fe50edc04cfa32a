"""FLUX and Wan, exported: two requests in turn, at two sizes, under several rules, where neither
Dynamo nor diffusers can be imported, as the compiled model draws and decides."""

import pytest
import torch
from torch.export import Dim

import dit_cachegraph as dc
from support import tiny_models
from support.exported_runs import Call, run_alone, run_here
from support.running import relative_error
from support.tiny_models import FLUX, WAN, TinyModel, trajectory

pytestmark = [
    pytest.mark.slow,
    pytest.mark.e2e,
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.skipif(
        torch.torch_version.TorchVersion(torch.__version__) < "2.13", reason="tried since 2.13"
    ),
]
NUM_STEPS = 28
SETTINGS = {"Fn_compute_blocks": 1, "max_warmup_steps": 4, "residual_diff_threshold": 0.3}
RULES = ({}, {"rule": "error_control"}, {"rule": "teacache"}, {"rule": "dbprune"})
OPEN = {
    "flux": {"hidden_states": {1: Dim.DYNAMIC}, "img_ids": {0: Dim.DYNAMIC}},
    "wan": {"hidden_states": {3: Dim.DYNAMIC, 4: Dim.DYNAMIC}},
}


def build(tiny: TinyModel) -> torch.nn.Module:
    return tiny_models.build_flux(2, 4) if tiny is FLUX else tiny.build(4)


def inputs_of(tiny: TinyModel, model, size: int, seed: int) -> dict[str, object]:
    return tiny.make_inputs(model, batch=1, size=size, text_tokens=6, seed=seed)


def two_requests(tiny: TinyModel, model, size: int, number: int) -> list[Call]:
    """Two images step by step in turn, under names of their own."""
    images = [
        [
            Call(f"{name}{number}", arguments, {})
            for arguments in trajectory(tiny, inputs_of(tiny, model, size, seed), NUM_STEPS, seed)
        ]
        for name, seed in (("a", 1), ("b", 2))
    ]
    return [call for step in zip(*images, strict=True) for call in step]


@pytest.mark.parametrize("tiny", [FLUX, WAN], ids=lambda tiny: tiny.name)
def test_an_exported_model_runs_alone(tiny, tmp_path):
    model, calls = build(tiny), []
    for number, (rule, size) in enumerate((rule, size) for rule in RULES for size in (4, 6)):
        image = two_requests(tiny, model, size, number)
        calls += [image[0]._replace(configure=rule), *image[1:]]
    dc.configure(model, **SETTINGS)
    dc.export(model, inputs_of(tiny, model, 4, 0), tmp_path / "x.dcx", OPEN[tiny.name])
    alone = run_alone(tmp_path / "x.dcx", model.state_dict(), calls, tmp_path)
    expected = run_here(torch.compile(model, backend="cachedit", dynamic=True), calls)
    errors = [
        relative_error(own, other)
        for (own,), (other,) in zip(alone.outputs, expected.outputs, strict=True)
    ]
    assert alone.steps == expected.steps
    assert max(errors) < 1e-5
    for start in range(0, len(calls), 2 * NUM_STEPS):
        hits = [hit for _, hit, _ in alone.steps[start : start + 2 * NUM_STEPS]]
        assert any(hits) and not all(hits), calls[start].configure
