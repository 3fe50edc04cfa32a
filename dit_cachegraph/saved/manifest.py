"""What was saved, for which model and by what: checked before anything of it is read.

folder/transformer/manifest.json            versions, the model's parts, a hash of each program
folder/transformer/program_5d41402a.bin     code: to be trusted like a package that is installed

Programs are named by what is in them, and each file appears whole: whoever reads finds all of what
one process has saved, also while another saves into the same folder.
"""

import hashlib
import importlib.metadata
import json
import platform
import tempfile
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from dit_cachegraph.exc import CannotSave
from dit_cachegraph.saved.model_parts import other_model

_FILE = "manifest.json"
FORM = 2
"""Of what is in the files: one more with each change of it, so that those of before are told."""


@dataclass(frozen=True, slots=True)
class Maker:
    """What compiled it: code of another one may not run here."""

    dit_cachegraph: str
    torch: str
    python: str
    machine: str
    device: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """`model`: a line for each part of the model; `programs`: the hash of each file;
    `built_for`: what a CPU has to have that runs them, where nothing in them can do without."""

    maker: Maker
    model: tuple[str, ...]
    programs: dict[str, str]
    built_for: tuple[str, ...] = ()


def check_writable(folder: Path, names: Iterable[str]) -> None:
    """Raises OSError where nothing can be written into `folder`, or for the parts of these names
    of a pipeline into theirs."""
    for place in (folder, *(folder_for(folder, name) for name in names)):
        if place.exists():
            with tempfile.TemporaryFile(dir=place):
                pass


def write_programs(
    folder: Path, module: nn.Module, programs: Iterable[bytes], parts: tuple[str, ...]
) -> None:
    """Write the programs of `module`, then their manifest in the place of the one before it, whose
    own programs go. `parts`: what `parts_of` gave before its first call, in which it may have
    changed."""
    folder.mkdir(parents=True, exist_ok=True)
    before = _manifest_in(folder)
    hashes = {}
    for data in programs:
        found = hashlib.sha256(data).hexdigest()
        name = f"program_{found[:16]}.bin"
        _write_whole(folder / name, data)
        hashes[name] = found
    manifest = Manifest(maker_on(_device_of(module)), parts, hashes)
    _write_whole(folder / _FILE, json.dumps(asdict(manifest), indent=1).encode())
    if isinstance(before, Manifest):
        for name in before.programs.keys() - hashes.keys():
            path = folder / name
            if path.parent == folder:
                path.unlink(missing_ok=True)


def _write_whole(path: Path, data: bytes) -> None:
    """In one step, for whoever reads: what was there before stays up to it."""
    beside = path.with_name(f".{uuid.uuid4().hex}")
    try:
        beside.write_bytes(data)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _manifest_in(folder: Path) -> Manifest | str:
    """The manifest in a folder, or why there is none."""
    try:
        return parse_manifest((folder / _FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, KeyError) as error:
        return f"{folder} holds nothing that `precompile` has saved whole: {error!r}"


def read_programs(folder: Path, module: nn.Module) -> list[bytes] | str:
    """The programs that were saved in `folder` for a model like `module`; a sentence where there
    are none, or not for such a one or from elsewhere."""
    manifest = _manifest_in(folder)
    if isinstance(manifest, str):
        return manifest
    here = maker_on(_device_of(module))
    misfit = why_made_elsewhere(manifest.maker, here)
    if misfit is not None:
        return misfit
    other = other_model(manifest.model, module)
    if other is not None:
        return f"it was saved for another {type(module).__name__}: {other}"
    programs = []
    for name, expected in manifest.programs.items():
        path = folder / name
        data = path.read_bytes() if path.is_file() and path.parent == folder else b""
        if hashlib.sha256(data).hexdigest() != expected:
            return f"{path} isn't the file that was saved: it is missing, cut short or changed"
        programs.append(data)
    return programs


def parse_manifest(text: str) -> Manifest:
    """Raises ValueError, TypeError or KeyError for what is none."""
    read = json.loads(text)
    return Manifest(
        Maker(**read["maker"]),
        tuple(read["model"]),
        dict(read["programs"]),
        tuple(read["built_for"]),
    )


def maker_on(device: torch.device) -> Maker:
    """This process, where it compiles for `device`."""
    return Maker(
        f"{importlib.metadata.version('dit_cachegraph')} (form {FORM})",
        str(torch.__version__),
        platform.python_version(),
        f"{platform.system()} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        _name_of(device),
    )


def _device_of(module: nn.Module) -> torch.device:
    return next((p.device for p in module.parameters()), torch.device("cpu"))


def _name_of(device: torch.device) -> str:
    if device.type != "cuda":
        return device.type
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)} (sm_{major}{minor})"


def why_made_elsewhere(saved: Maker, here: Maker) -> str | None:
    """A sentence where another version or machine has made it, whose code may not run here."""
    for name, was in asdict(saved).items():
        now = asdict(here)[name]
        if was != now:
            return f"it was saved with {name} {was}, and this is {now}: save it again here"
    return None


def folder_for(folder: Path, name: str) -> Path:
    """Where the programs of the part `name` of a pipeline lie.

    Raises:
        CannotSave: the name leads elsewhere.
    """
    if Path(name).name != name:
        raise CannotSave(f"{name!r} can't be the name of a folder")
    return folder / name
