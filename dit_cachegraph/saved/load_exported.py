"""`load_exported`: from the file of an exported model to a model, without Dynamo and Inductor.

load_exported("flux.dcx", state_dict)    file -> checked -> packages -> trunk -> driver
"""

import io
import json
import logging
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from dit_cachegraph import ops
from dit_cachegraph.batches.model import BatchedModel
from dit_cachegraph.exc import CannotLoad
from dit_cachegraph.plan import CompiledTrunk
from dit_cachegraph.runtime.reading import plain_measure
from dit_cachegraph.saved.as_json import from_json
from dit_cachegraph.saved.exported_call import CallReader
from dit_cachegraph.saved.exported_file import (
    CONSTANTS,
    PLAN,
    SEGMENTS,
    ExportedPlan,
    read_file,
    weight_lines,
)
from dit_cachegraph.saved.exported_model import ExportedModel, class_named, functions_of
from dit_cachegraph.saved.size_expression import SizeExpression, parse_sizes

log = logging.getLogger("dit_cachegraph")


def load_exported(path: str | Path, state_dict: Mapping[str, Tensor]) -> ExportedModel:
    """The model that `export` has written to `path`, with the weights of `state_dict`, which it
    shares: on their device, in the dtypes that were exported.

    It is called with the arguments that were exported, by name, and is a target for `configure`,
    `summary` and all others. Needs neither the model's code nor a compiler. The file holds code:
    load only what you would install.

    Raises:
        CannotLoad: the file isn't whole or isn't one of `export`, another version or machine made
            it, or the weights are no tensors by name or don't fit. Nothing of it has run then.
    """
    began = time.perf_counter()
    _check_state_dict(state_dict)
    device = next((t.device for t in state_dict.values()), torch.device("cpu"))
    parts = read_file(Path(path), weight_lines(state_dict), device)
    plan = _plan_in(Path(path), parts[PLAN])
    compiled = _compiled(plan, parts[SEGMENTS], began)
    kind = class_named(plan.model)
    model = kind(BatchedModel(compiled, plan.settings, kind), CallReader(plan.call), device)
    constants = torch.load(io.BytesIO(parts[CONSTANTS]), map_location=device, weights_only=True)
    for name in plan.call.weights:
        is_saved = name not in constants
        model.hold(name, state_dict[name] if is_saved else constants[name], is_saved=is_saved)
    log.info("%s: loaded in %.1f s", plan.model, compiled.compile_seconds)
    return model.eval()


def _check_state_dict(given: object) -> None:
    """Raises: CannotLoad, for what is none, such as the model itself."""
    if not isinstance(given, Mapping):
        raise CannotLoad(
            "load_exported takes the weights by name, as of `transformer.state_dict()`, "
            f"got {type(given).__name__}"
        )
    for name, weight in given.items():
        if not isinstance(weight, Tensor):
            raise CannotLoad(f"the state dict's `{name}` is no tensor: {type(weight).__name__}")


def _plan_in(path: Path, data: bytes) -> ExportedPlan:
    try:
        return from_json(ExportedPlan, json.loads(data))
    except (ValueError, TypeError) as error:
        raise CannotLoad(f"{path} has no plan that can be read: {error}") from error


def _compiled(plan: ExportedPlan, segments: bytes, began: float) -> CompiledTrunk:
    trunk = plan.trunk
    num_functions = 1 + max(segment.kind for segment in trunk.segments)
    names = [f"segment_{kind}" for kind in range(num_functions)]
    has_modulated_input = not isinstance(trunk.modulated_input, str)
    others = ["modulated_input"] if has_modulated_input else []
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / SEGMENTS
        archive.write_bytes(segments)
        functions = functions_of(archive, [*names, *others])
    ops.build_kernels(plan.stream_kind, trunk.batch_dim)
    return CompiledTrunk(
        trunk=replace(trunk, measure_sizes=()),
        roles=plan.roles,
        functions=tuple(functions[name] for name in names),
        measure=plain_measure(trunk.batch_dim),
        modulated_input=functions.get("modulated_input"),
        allows_batch=_allowed_batches(plan),
        num_compiled=num_functions,
        compile_seconds=time.perf_counter() - began,
        is_loaded=True,
    )


@dataclass(frozen=True, slots=True)
class _AllowedBatches:
    """True for the sizes of the `batch` for which what holds of all calls holds, whatever other
    sizes they have. None: for none."""

    batch: str | None
    least: int = 2
    most: int | None = None
    checks: tuple[SizeExpression, ...] = ()

    def __call__(self, size: int) -> bool:
        if self.batch is None or size < self.least or (self.most is not None and size > self.most):
            return False
        try:
            return all(check({self.batch: size}) for check in self.checks)
        except KeyError:  # It relates the batch to another size.
            return False


def _allowed_batches(plan: ExportedPlan) -> _AllowedBatches:
    bounds = next((size for size in plan.call.sizes if size.name == plan.batch), None)
    if bounds is None:
        return _AllowedBatches(None)
    checks = [parse_sizes(text) for text in plan.call.checks if bounds.name in text]
    return _AllowedBatches(bounds.name, bounds.least, bounds.most, tuple(checks))
