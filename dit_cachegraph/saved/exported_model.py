"""An exported model: weights by the names of a state dict, and a driver over compiled packages.

Nothing here or beneath imports Dynamo or Inductor: torch loads packages by its C++ alone.
"""

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor, nn

from dit_cachegraph.batches.model import BatchedModel
from dit_cachegraph.exc import InvalidConfig
from dit_cachegraph.plan import CompiledSegment
from dit_cachegraph.saved.exported_call import CallReader
from dit_cachegraph.saved.exported_file import weight_lines
from dit_cachegraph.targets import Exported

# What code is compiled for, of each weight: read without a function of Python for each.
_READ: tuple[Callable[[Tensor], object], ...] = (
    type,
    attrgetter("shape"),
    Tensor.stride,
    attrgetter("dtype"),
    attrgetter("device"),
)


class ExportedModel(Exported):
    """What `load_exported` returns. It is called with the arguments that were exported, by name;
    its weights are parameters and buffers, named as those of the model that was exported."""

    def __init__(self, driver: BatchedModel, reader: CallReader, device: torch.device) -> None:
        super().__init__()
        self._driver, self._reader, self._device = driver, reader, device
        self._owners: dict[str, tuple[nn.Module, str]] = {}
        self._lines: tuple[str, ...] = ()
        self._checked: tuple[object, ...] = ()

    def hold(self, name: str, tensor: Tensor, *, is_saved: bool) -> None:
        """Take in a weight under its name. `is_saved`: it is one of the state dict."""
        path, _, last = name.rpartition(".")
        owner = _submodule(self, path)
        if is_saved:
            owner.register_parameter(last, nn.Parameter(tensor, requires_grad=False))
        else:
            owner.register_buffer(last, tensor, persistent=False)
        self._owners[name] = (owner, last)
        self._lines += weight_lines({name: tensor})

    def _check(self, weights: Mapping[str, Tensor]) -> None:
        """Others may have been set since, or given other data, for which the code isn't compiled:
        it would read beyond their ends."""
        seen = tuple([tuple(map(read, weights.values())) for read in _READ])
        if seen != self._checked:
            for expected, line in zip(self._lines, weight_lines(weights), strict=True):
                if line != expected:
                    raise InvalidConfig(f"a weight is `{line}`, and was exported as `{expected}`")
            for name, tensor in weights.items():
                if tensor.device != self._device:
                    raise InvalidConfig(
                        f"{name} lies on {tensor.device}, and the code is for {self._device}"
                    )
            self._checked = seen

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an exported model can be neither copied nor pickled, since its code is loaded from "
            "its file: call `load_exported` again"
        )

    def _apply(self, fn: Callable[..., object], recurse: bool = True) -> NoReturn:
        raise InvalidConfig(
            "an exported model stays on its device and in its dtype, for which its code is "
            "compiled: export it there"
        )

    @torch.no_grad()
    def forward(self, **given: object) -> object:
        """Raises TypeError or InvalidConfig where the call isn't of the form that was exported."""
        weights = {name: getattr(owner, last) for name, (owner, last) in self._owners.items()}
        self._check(weights)
        arguments = self._reader.arguments_of(given, weights)
        return self._reader.result_of(self._driver(*arguments))


def class_named(name: str) -> type[ExportedModel]:
    """A class of that name, since reports call a model by that of its class."""
    return type(name, (ExportedModel,), {})


def functions_of(archive: Path, names: Sequence[str]) -> Mapping[str, CompiledSegment]:
    """The packages in a `.pt2`, by name, as the driver calls them. Their code is loaded."""
    return {name: _as_called(_load(archive, name)) for name in names}


def _load(archive: Path, name: str) -> Callable[[list[Tensor]], list[Tensor]]:
    # What `torch._inductor.aoti_load_package` comes down to, but for the import of Inductor.
    loader = torch._C._aoti.AOTIModelPackageLoader(str(archive), name, False, 1, -1)
    return loader.boxed_run


def _as_called(run: Callable[[list[Tensor]], list[Tensor]]) -> CompiledSegment:
    def call(inputs: list[object]) -> Sequence[object]:
        return run([_as_tensor(value) for value in inputs])

    return call


def _as_tensor(value: object) -> Tensor:
    """Packages take tensors alone: a size is that of one without elements."""
    if isinstance(value, Tensor):
        return value
    assert isinstance(value, int)
    return torch.empty((value, 0), dtype=torch.uint8, device="cpu")


def _submodule(root: nn.Module, path: str) -> nn.Module:
    for name in filter(None, path.split(".")):
        if name not in root._modules:
            root.add_module(name, nn.Module())
        found = root._modules[name]
        assert found is not None
        root = found
    return root
