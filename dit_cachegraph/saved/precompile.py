"""`precompile` and `load`: a new process draws its first picture without a trace or a compiler.

precompile(pipe, draw, save="folder")    draw(pipe), not compiled -> the kinds of its calls
                                         -> a program for each -> folder
load(pipe, "folder")                     folder -> programs -> pipe.transformer
"""

import logging
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import torch
from torch import nn

from dit_cachegraph.exc import CannotLoad, CannotSave, InvalidConfig, NotLoadedWarning
from dit_cachegraph.saved.forward import SavedForward, check_plain
from dit_cachegraph.saved.manifest import check_writable, folder_for, read_programs, write_programs
from dit_cachegraph.saved.model_parts import parts_of
from dit_cachegraph.saved.record_calls import RecordedCall, record_calls, with_open_sizes
from dit_cachegraph.targets import modules_in

if TYPE_CHECKING:
    from dit_cachegraph.saved.program import Program

log = logging.getLogger("dit_cachegraph")
Options = Mapping[str, object]
Target = TypeVar("Target")


class _Part(NamedTuple):
    """A transformer of what was given: by its name in the pipeline, or the one that was given."""

    name: str
    module: nn.Module


def precompile(
    target: Target,
    draw: Callable[[Target], object],
    save: str | Path,
    options: Mapping[str, object] | None = None,
) -> Target:
    """Compile a pipeline's transformers, or one transformer, for all calls that `draw(target)`
    makes, and write what was compiled into the folder `save`, where `load` finds it.

    `draw` runs once, on what isn't compiled: with each resolution, batch size and kind of guidance
    that is to be ready; a few steps of each are enough. Sizes that differ between its calls are
    open in what is compiled. `options` are those of `torch.compile`. Returns what `load` returns,
    so that this process needn't load.

    The folder holds code: load only what you would install. The values of the model's weights may
    be others later; calls of a model whose parts have changed are compiled as they come.

    Raises:
        CannotSave: the model is compiled already or has hooks, is changed while `draw` runs, its
            forward breaks into several graphs, isn't cached, or isn't called by `draw`; an option
            can't be written down; or torch is older than 2.13.
        InvalidConfig: `save` is a file.
        OSError: `save` can't be made, or nothing can be written into it.
        UnknownTarget: `target` holds no transformer.
    """
    if (reason := _too_old()) is not None:
        raise CannotSave(reason)
    options, folder = dict(options or {}), Path(save)
    parts = _parts_of(target)
    for part in parts:
        check_plain(part.module)
    if folder.is_file():
        raise InvalidConfig(f"save={str(folder)!r} is a file: give the name of a folder")
    # Where nothing can be written, that is found before the minutes that compiling takes.
    folder.mkdir(parents=True, exist_ok=True)
    check_writable(folder, [part.name for part in parts])
    _check_savable(options)
    lines = {part: parts_of(part.module) for part in parts}
    calls = record_calls([part.module for part in parts], lambda: draw(target))
    made = {
        part: _programs_for(part.module, recorded, options)
        for part, recorded in zip(parts, calls, strict=True)
    }
    data = {part: [p.to_bytes(part.module) for p in programs] for part, programs in made.items()}
    for part, written in data.items():
        write_programs(folder_for(folder, part.name), part.module, written, lines[part])
    for part, programs in made.items():
        target = _put(target, part, programs, options)
    return target


def load(target: Target, folder: str | Path, options: Mapping[str, object] | None = None) -> Target:
    """Give a pipeline's transformers, or one transformer, what `precompile` has saved in `folder`.

    Returns what is to be called: the pipeline, its transformers replaced as by `torch.compile`, or
    for a transformer what `torch.compile` returns. `options` are those that were given to
    `precompile`. Calls that nothing was saved for are compiled as they come, with a line in the
    log. What doesn't fit (other versions, device, options, another model, a damaged file) is told
    by a `NotLoadedWarning`, and compiles afresh.

    Raises:
        CannotSave: the model is compiled already, or has hooks: put them on afterwards.
        InvalidConfig: `folder` is no folder, as where cache-dit's call of this name was meant.
        UnknownTarget: `target` holds no transformer.
    """
    if not isinstance(folder, (str, Path)) or Path(folder).is_file():
        raise InvalidConfig(
            f"load(target, folder) reads the folder that precompile has written, got {folder!r}; "
            "quantised weights are loaded by diffusers or cache-dit"
        )
    options = dict(options or {})
    parts = _parts_of(target)
    for part in parts:
        check_plain(part.module)
    for part in parts:
        programs = _loaded(part, Path(folder), options)
        if isinstance(programs, str):
            warnings.warn(programs, NotLoadedWarning, stacklevel=2)
            programs = []
        target = _put(target, part, programs, options)
    return target


def _check_savable(options: Options) -> None:
    for name, value in options.items():
        try:
            pickle.dumps(value)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise CannotSave(
                f"{name}={value!r} has no form in a file ({error}): its class has to be at the top "
                "of a module that the process which loads can import"
            ) from error


def _loaded(part: _Part, folder: Path, options: Options) -> "list[Program] | str":
    # What traces imports Dynamo, and who calls what was exported does without it.
    from dit_cachegraph.saved.program import program_from_bytes  # noqa: PLC0415

    if (reason := _too_old()) is not None:
        return reason
    saved = read_programs(folder_for(folder, part.name), part.module)
    if isinstance(saved, str):
        return saved
    try:
        programs = [program_from_bytes(data, part.module) for data in saved]
    except CannotLoad as error:
        return str(error)
    for program in programs:
        if program.options != options:
            return f"it was saved with the options {dict(program.options)}, not {dict(options)}"
    log.info("%s: %d programs loaded", type(part.module).__name__, len(programs))
    return programs


def _programs_for(
    module: nn.Module, calls: list[RecordedCall], options: Options
) -> "list[Program]":
    """A program for each kind of call, and for each size where one can't be for several."""
    from dit_cachegraph.saved.program import compile_program, mode_of  # noqa: PLC0415

    if not calls:
        raise CannotSave(f"`draw` never called {type(module).__name__}: there is nothing to save")
    programs: list[Program] = []
    for call in calls:
        alike = [program for program in programs if program.kind == call.kind]
        with mode_of(call.kind):
            if any(program.takes(module, call.args, call.kwargs) for program in alike):
                continue
        example = with_open_sizes(call, calls)
        log.info("%s: compiling program %d", type(module).__name__, len(programs) + 1)
        programs.append(compile_program(module, call.kind, example.args, example.kwargs, options))
    return programs


def _put(target: Target, part: _Part, programs: "list[Program]", options: Options) -> Target:
    """Compile the part, with its programs in the place of what is compiled as calls come."""
    given = cast(dict[str, Any], dict(options))
    compiled = cast(nn.Module, torch.compile(part.module, backend="cachedit", options=given))
    if programs:
        forward = SavedForward(part.module, programs, compiled.forward)
        # Where the caller's own code is compiled, a trace ends here and goes on afterwards.
        compiled.forward = torch.compiler.disable(forward, reason="it is compiled already")
    if target is part.module:
        return cast(Target, compiled)
    setattr(target, part.name, compiled)
    return target


def _parts_of(target: object) -> list[_Part]:
    modules = modules_in(target)
    if modules == [target]:
        return [_Part("model", modules[0])]
    components = getattr(target, "components", {})
    names = {id(value): name for name, value in components.items()}
    if any(id(module) not in names for module in modules):
        raise CannotSave("give the pipeline or the transformer as they are before `torch.compile`")
    return [_Part(names[id(module)], module) for module in modules]


def _too_old() -> str | None:
    if torch.torch_version.TorchVersion(torch.__version__) >= "2.13":
        return None
    return f"saving needs torch 2.13 or newer, and this is {torch.__version__}"
