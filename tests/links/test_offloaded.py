"""FLUX whose blocks diffusers moves to the device and back, one group after the other: each block
is still one graph between two hooks, and a link."""

import copy
from pathlib import Path

import pytest
import torch
from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor, nn

import dit_cachegraph as dc
from oracles.dbcache import EagerOracle
from support.running import relative_error, run_all
from support.tiny_models import FLUX, trajectory
from support.toy_runs import NUM_WATCHED

pytestmark = pytest.mark.e2e

DEPTH, NUM_STEPS = 4, 12
SETTINGS = {"Fn_compute_blocks": 1, "max_warmup_steps": 2, "residual_diff_threshold": 0.2}
CPU = torch.device("cpu")


def steps_of(model: nn.Module, seed: int = 0) -> list[dict[str, object]]:
    inputs = FLUX.make_inputs(model, batch=2, size=3, text_tokens=5, seed=seed)
    return list(trajectory(FLUX, inputs, NUM_STEPS, seed=seed))


def offload(model: nn.Module, num_blocks: int, folder: Path | None = None) -> None:
    """With a folder the weights are overwritten after each group, and read again before it."""
    model.enable_group_offload(
        onload_device=CPU,
        offload_device=CPU,
        offload_type="block_level",
        num_blocks_per_group=num_blocks,
        offload_to_disk_path=None if folder is None else str(folder),
    )


def compiled(model: nn.Module, **settings: object) -> nn.Module:
    """Compiled as a whole, which breaks at the hooks, and watched."""
    options = {"inner_backend": "eager", **SETTINGS, **settings}
    model.compile(backend="cachedit", options=options)
    run_plain(model, steps_of(model, seed=9)[:NUM_WATCHED])
    assert "not cached yet" in dc.summary(model).standing
    return model


@torch.no_grad()
def run_plain(model: nn.Module, steps: list[dict[str, object]]) -> list[Tensor]:
    return [model(**kwargs)[0] for kwargs in steps]


@pytest.fixture(scope="module")
def plain() -> nn.Module:
    return FLUX.build(DEPTH)


@pytest.fixture(params=["1", "2", pytest.param("1, on disk", marks=pytest.mark.slow)])
def offloaded(request: pytest.FixtureRequest, plain: nn.Module, tmp_path: Path) -> nn.Module:
    model = copy.deepcopy(plain)
    offload(model, int(request.param[0]), tmp_path if "disk" in request.param else None)
    return compiled(model)


def test_exact_at_threshold_0_then_as_the_oracle(offloaded: nn.Module, plain: nn.Module) -> None:
    dc.configure(offloaded, residual_diff_threshold=0.0)
    steps = steps_of(plain, seed=1)
    for ran, expected in zip(run_all(offloaded, steps[:4]), run_plain(plain, steps), strict=False):
        assert not ran.hit
        assert torch.equal(ran.output, expected)
    dc.configure(offloaded, **SETTINGS)
    before = dc.summary(offloaded)
    oracle = EagerOracle(plain, FLUX.block_lists, FLUX.stream_outputs, **SETTINGS)
    steps = steps_of(plain)
    ran = run_all(offloaded, steps)
    for i, (step, kwargs) in enumerate(zip(ran, steps, strict=True)):
        with torch.no_grad():
            expected = oracle.step(**kwargs)
        assert step.hit == expected.hit, f"step {i}: {step.reason}, oracle: {expected.reason}"
        assert relative_error(step.output, expected.output) < 1e-5, f"step {i}"
    num_hits = sum(step.hit for step in ran)
    assert 3 <= num_hits < NUM_STEPS - 2
    report = dc.summary(offloaded)
    num_run = report.num_blocks_run - before.num_blocks_run
    assert num_run == DEPTH * (NUM_STEPS - num_hits) + num_hits
    dc.check(offloaded)
    (note,) = report.notes
    assert note.startswith("diffusers' group offloading moves the weights of each block of Flux")
    (graph,) = [graph for graph in report.graphs if not graph.refusals]
    assert graph.is_linked and graph.num_blocks == DEPTH


class Disturbs(ModelHook):
    """Scales the stream of a block outside of any graph."""

    def post_forward(self, module: nn.Module, output: tuple[Tensor, Tensor]) -> object:
        return scaled(output)


@torch.compiler.disable()
def scaled(output: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    return tuple(1.5 * stream for stream in output)


class Stands(ModelHook):
    """Does nothing, but is inside of a block."""


def put_on(module: nn.Module, hook: ModelHook) -> None:
    HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, "own")


@pytest.mark.parametrize(
    ("path", "hook", "sentence"),
    [
        ("single_transformer_blocks.1", Disturbs(), "reads what the first of them returned"),
        ("single_transformer_blocks.1.attn", Stands(), "carries hooks of diffusers on 6 modules"),
    ],
    ids=["around a block", "inside one"],
)
def test_hooks_that_do_more_are_refused(
    path: str, hook: ModelHook, sentence: str, plain: nn.Module
) -> None:
    eager = copy.deepcopy(plain)
    put_on(eager.get_submodule(path), hook)
    model = copy.deepcopy(plain)
    put_on(model.get_submodule(path), copy.copy(hook))
    offload(model, 1)
    model.compile(backend="cachedit", options={"inner_backend": "eager", **SETTINGS})
    steps = steps_of(plain)[: NUM_WATCHED + 1]
    with pytest.warns(dc.NotCachedWarning) as warned:
        outputs = run_plain(model, steps)
    assert sum(w.category is dc.NotCachedWarning for w in warned) == 1
    for output, expected in zip(outputs, run_plain(eager, steps), strict=True):
        torch.testing.assert_close(output, expected)
    with pytest.raises(dc.NotCached, match=sentence):
        dc.check(model)
