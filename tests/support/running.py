"""How the tests compile and run a tiny model: small helpers shared by the end-to-end tests."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import dit_cachegraph as dc
from oracles.dbcache import EagerOracle


@dataclass(frozen=True)
class Ran:
    """One compiled step: its output and what it decided."""

    output: Tensor
    hit: bool
    reason: str
    diff: float | None


def compile_cached(model: nn.Module, inner_backend: str = "eager", **settings: object):
    """`torch.compile(model)` with our backend, one full graph. Settings of the cache are given by
    `configure`, so that models whose settings differ share what Dynamo compiles."""
    options: dict[str, object] = {"inner_backend": inner_backend}
    options |= {name: settings.pop(name) for name in ("mode", "inductor") if name in settings}
    compiled = torch.compile(model, backend="cachedit", fullgraph=True, options=options)
    dc.configure(compiled, **settings)
    return compiled


def run_step(compiled: nn.Module, kwargs: dict[str, object]) -> Ran:
    """One step without gradients."""
    with torch.no_grad():
        output = compiled(**kwargs)[0]
    last = dc.summary(compiled).steps[-1]
    return Ran(output, last.hit, last.reason, last.diff)


def run_all(compiled: nn.Module, steps: Iterable[dict[str, object]]) -> list[Ran]:
    return [run_step(compiled, kwargs) for kwargs in steps]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


def assert_same_run(ran: list[Ran], oracle: EagerOracle, steps, tolerance: float = 1e-5) -> None:
    """Every step of an image decided and gave what the oracle does."""
    for i, (step, kwargs) in enumerate(zip(ran, steps, strict=True)):
        with torch.no_grad():
            expected = oracle.step(**kwargs)
        assert step.hit == expected.hit, f"step {i}: {step.reason}, oracle: {expected.reason}"
        assert relative_error(step.output, expected.output) < tolerance, f"step {i}"
