"""The one file of an exported model: what is in it, and whether it is whole, which is asked before
anything of it is read.

    manifest.json     versions, the weights that it needs, a hash of each other part
    plan.json         the trunk, roles, settings and the form of its calls, as data
    constants.pt      tensors that no state dict has: buffers that aren't saved, constants
    segments.pt2      AOTInductor's packages: code, to be trusted like a package that is installed
"""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from dit_cachegraph.cpu import cpu_features, features_lacking_here
from dit_cachegraph.exc import CannotLoad
from dit_cachegraph.plan import ArgumentRoles, StreamKind, Trunk
from dit_cachegraph.saved.exported_call import CallForm
from dit_cachegraph.saved.manifest import Manifest, maker_on, parse_manifest, why_made_elsewhere
from dit_cachegraph.saved.model_parts import tensor_line

PLAN, CONSTANTS, SEGMENTS = "plan.json", "constants.pt", "segments.pt2"
_MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class ExportedPlan:
    """All of an exported model but its code and its tensors. `model` is the name of its class;
    `functions` are the names of the packages of its segments, by kind; `batch` the size that is
    that of the batch, where it differs from call to call."""

    model: str
    trunk: Trunk
    roles: ArgumentRoles
    stream_kind: StreamKind
    call: CallForm
    settings: dict[str, object]
    batch: str | None


def weight_lines(weights: Mapping[str, Tensor]) -> tuple[str, ...]:
    """A line for each: its name, and what code is compiled for of it."""
    return tuple(f"{name}: {tensor_line(tensor)}" for name, tensor in weights.items())


def write_file(
    path: Path, parts: Mapping[str, bytes], model: tuple[str, ...], device: torch.device
) -> None:
    """Write the parts with their manifest. `model`: a line for each weight."""
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in parts.items()}
    built_for = tuple(sorted(cpu_features()))
    manifest = json.dumps(asdict(Manifest(maker_on(device), model, hashes, built_for)), indent=1)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(_MANIFEST, manifest)
        for name, data in parts.items():
            archive.writestr(name, data)


def read_file(path: Path, model: tuple[str, ...], device: torch.device) -> dict[str, bytes]:
    """The parts of a file that was made for such weights, on such a machine. None of it has run.

    Raises:
        CannotLoad: it is no file of `export`, it isn't whole, or it is from elsewhere.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            manifest = parse_manifest(archive.read(_MANIFEST).decode())
            _check_made_here(path, manifest, device)
            parts = {name: archive.read(name) for name in archive.namelist() if name != _MANIFEST}
    except OSError as error:
        raise CannotLoad(f"{path} can't be read: {error}") from error
    except (zipfile.BadZipFile, zlib.error, ValueError, TypeError, KeyError, EOFError) as error:
        raise CannotLoad(f"{path} is no file that `export` has written whole: {error!r}") from error
    _check_whole(path, manifest, parts)
    _check_weights(manifest.model, model)
    return parts


def _check_made_here(path: Path, manifest: Manifest, device: torch.device) -> None:
    misfit = why_made_elsewhere(manifest.maker, maker_on(device))
    if misfit is not None:
        raise CannotLoad(f"{path}: {misfit}")
    missing = features_lacking_here(manifest.built_for)
    if missing:
        raise CannotLoad(
            f"{path}: it was compiled for a CPU that has {', '.join(missing)}, which this one "
            "lacks: export it again here"
        )


def _check_whole(path: Path, manifest: Manifest, parts: Mapping[str, bytes]) -> None:
    found = {name: hashlib.sha256(data).hexdigest() for name, data in parts.items()}
    for name in sorted({PLAN, CONSTANTS, SEGMENTS} | found.keys() | manifest.programs.keys()):
        if name not in found or found[name] != manifest.programs.get(name):
            raise CannotLoad(
                f"{path}: {name} isn't what `export` has written: it is missing or was changed"
            )


def _check_weights(saved: tuple[str, ...], given: tuple[str, ...]) -> None:
    found = frozenset(given)
    missing = next((line for line in saved if line not in found), None)
    if missing is not None:
        name, _, _ = missing.partition(": ")
        other = next((line for line in given if line.startswith(f"{name}: ")), None)
        instead = "" if other is None else f"; it has `{other}`"
        raise CannotLoad(f"the state dict lacks `{missing}`, which the exported model has{instead}")
