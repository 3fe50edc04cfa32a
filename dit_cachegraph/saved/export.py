"""`export`: a model as one file that runs without its code, without Dynamo and without a compiler.

export(transformer, example, "flux.dcx")    torch.export -> as Dynamo traces -> the stages -> cut
                                            -> AOTInductor's packages, and data -> file
"""

import io
import json
import logging
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from dit_cachegraph.config import resolve
from dit_cachegraph.exc import CannotSave, UnknownTarget
from dit_cachegraph.freeze import settings_as_config
from dit_cachegraph.models import REGISTRY
from dit_cachegraph.policy.catalog import PREDICTORS, RULES
from dit_cachegraph.saved.as_json import to_json
from dit_cachegraph.saved.exported_file import (
    CONSTANTS,
    PLAN,
    SEGMENTS,
    ExportedPlan,
    weight_lines,
    write_file,
)
from dit_cachegraph.saved.forward import check_plain

log = logging.getLogger("dit_cachegraph")


def export(
    module: nn.Module,
    example: Mapping[str, object],
    path: str | Path,
    dynamic_shapes: Mapping[str, object] | None = None,
) -> None:
    """Write a transformer to one file, which `load_exported` runs in a process that has neither its
    code nor Dynamo.

    `example` are the arguments of one call, by name; what is no tensor in it, and which are there,
    is a part of what is exported (`return_dict=False` for a model of diffusers, whose own classes
    another process may not have). `dynamic_shapes`, as `torch.export` takes them, say by the same
    names which sizes differ from call to call. Weights are not in the file, but for what no state
    dict has. What `configure` was told of the module is what the file begins with; it can be
    changed after loading.

    Raises:
        CannotSave: the model can't be exported in one piece or isn't cached, is given or returns
            what is no tensor and no plain value, or goes by a rule or predictor of your own.
        OSError: nothing can be written beside `path`.
        TypeError: `example` has no names.
        UnknownTarget: `module` is none, such as a pipeline.
    """
    if not isinstance(module, nn.Module):
        raise UnknownTarget(
            f"export takes one transformer, as `pipe.transformer`, got {type(module).__name__}"
        )
    if not isinstance(example, Mapping):
        raise TypeError(
            "export takes the arguments of one call by name, as "
            f"{{'hidden_states': ...}}, got {type(example).__name__}"
        )
    began = time.perf_counter()
    # What traces and compiles imports Dynamo, and who loads what was exported does without it.
    from dit_cachegraph.saved.cut_exported import cut_module, package  # noqa: PLC0415

    settings = _settings_of(module)
    check_plain(module)
    # Where nothing can be written, that is found before the minutes that compiling takes.
    with tempfile.TemporaryFile(dir=Path(path).parent):
        pass
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / SEGMENTS
        made = cut_module(module, example, dynamic_shapes or {})
        call = package(made, archive)
        plan = ExportedPlan(
            model=type(module).__name__,
            trunk=made.cut.trunk,
            roles=made.cut.roles,
            stream_kind=made.stream_kind,
            call=call,
            settings=settings,
            batch=made.batch,
        )
        parts = {
            PLAN: json.dumps(to_json(plan)).encode(),
            CONSTANTS: _as_bytes(made.constants),
            SEGMENTS: archive.read_bytes(),
        }
    write_file(Path(path), parts, weight_lines(made.weights), made.stream_kind.device)
    log.info("%s: exported in %.1f s", type(module).__name__, time.perf_counter() - began)


def _settings_of(module: nn.Module) -> dict[str, object]:
    """What `configure` was told of the module, with rule and predictor by name."""
    overrides = REGISTRY.of_module(module).overrides if REGISTRY.has_module(module) else ()
    if not overrides:
        return {}
    settings = resolve(*map(dict, overrides))
    for kind, known in ((settings.rule, RULES), (settings.predictor, PREDICTORS)):
        if known.get(kind.name) is not type(kind):
            raise CannotSave(
                f"{kind.name!r} is a {type(kind).__name__} of your own, which has no form in a "
                "file: configure the model with it after it is loaded"
            )
    return {**asdict(settings.common), **settings_as_config(settings)}


def _as_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save({name: tensor.cpu() for name, tensor in tensors.items()}, buffer)
    return buffer.getvalue()
