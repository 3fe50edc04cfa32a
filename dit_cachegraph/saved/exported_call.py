"""Of which form the calls of an exported model are: what its graph takes, of what the caller gives.

hidden_states=float32[2, s0, 16], guidance=None    ->    s0, the weights, hidden_states
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.utils import _pytree as pytree

from dit_cachegraph.exc import InvalidConfig
from dit_cachegraph.saved.size_expression import Sizes, parse_sizes

_ALIGNMENT = 16  # bytes, as Inductor's kernels read
Plain = None | bool | int | float | str
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GivenTensor:
    """A tensor that the caller gives: where, and the expression of each of its sizes."""

    path: str
    dtype: torch.dtype
    device: str
    shape: tuple[str, ...]

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{dtype} [{', '.join(self.shape)}] on {self.device}"


@dataclass(frozen=True, slots=True)
class GivenValue:
    """What else the caller gives: a part of the graph, which has to be the same at each call."""

    path: str
    value: Plain


@dataclass(frozen=True, slots=True)
class SizeRange:
    """A size that differs from call to call; `most` is None where there is no bound."""

    name: str
    least: int
    most: int | None

    def __str__(self) -> str:
        return f"{self.name} from {self.least}" + ("" if self.most is None else f" to {self.most}")


@dataclass(frozen=True, slots=True)
class CallForm:
    """`names` of the arguments, `given` are their leaves in the order of pytree, whose `structure`
    it is; `results` is that of what is returned. `checks` hold of the sizes of all calls. The graph
    takes the sizes, then `arguments`: the number of a leaf, or the name of a weight.
    """

    names: tuple[str, ...]
    structure: str
    given: tuple[GivenTensor | GivenValue, ...]
    sizes: tuple[SizeRange, ...]
    checks: tuple[str, ...]
    arguments: tuple[int | str, ...]
    results: str

    @property
    def weights(self) -> tuple[str, ...]:
        return tuple(name for name in self.arguments if isinstance(name, str))


class CallReader:
    """Reads calls of one form. It remembers the sizes that were found to fit."""

    def __init__(self, form: CallForm) -> None:
        self._form = form
        self._structure = pytree.treespec_loads(form.structure)
        self._results = pytree.treespec_loads(form.results)
        self._shapes = {
            i: [parse_sizes(size) for size in given.shape]
            for i, given in enumerate(form.given)
            if isinstance(given, GivenTensor)
        }
        self._checks = [parse_sizes(check) for check in form.checks]
        self._known: dict[tuple[Shape, ...], tuple[int, ...]] = {}

    def arguments_of(
        self, given: Mapping[str, object], weights: Mapping[str, Tensor]
    ) -> list[object]:
        """What the graph takes at a call.

        Raises:
            TypeError: the call has other arguments than those that were exported.
            InvalidConfig: their values, types or sizes don't fit.
        """
        leaves = self._leaves_of(given)
        shapes = tuple([leaves[i].shape for i in self._shapes])  # type: ignore[attr-defined]
        sizes = self._known.get(shapes)
        if sizes is None:
            sizes = self._known[shapes] = self._sizes_of(
                dict(zip(self._shapes, shapes, strict=True))
            )
        return [
            *sizes,
            *(weights[a] if isinstance(a, str) else leaves[a] for a in self._form.arguments),
        ]

    def result_of(self, results: Sequence[object]) -> object:
        """What the model returns, of what the graph does."""
        return pytree.tree_unflatten(results, self._results)

    def _leaves_of(self, given: Mapping[str, object]) -> list[object]:
        names = self._form.names
        if given.keys() != set(names):
            raise TypeError(
                f"the model was exported for calls with {', '.join(names)}, by name; this one has "
                f"{', '.join(given) or 'none'}"
            )
        leaves, structure = pytree.tree_flatten({name: given[name] for name in names})
        if structure != self._structure:
            raise TypeError("the lists and dicts in this call are others than those exported")
        for leaf, form in zip(leaves, self._form.given, strict=True):
            _check_leaf(leaf, form)
        return [as_compiled_for(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]

    def _sizes_of(self, shapes: Mapping[int, Shape]) -> tuple[int, ...]:
        sizes: dict[str, int] = {}
        for i, shape in shapes.items():
            form = self._form.given[i]
            assert isinstance(form, GivenTensor)
            if len(shape) != len(form.shape):
                raise InvalidConfig(self._told(form, shape))
            known = [(text, size) for text, size in zip(form.shape, shape, strict=True)]
            sizes |= {text: size for text, size in known if text.isidentifier()}
        self._check_shapes(shapes, sizes)
        for bounds in self._form.sizes:
            size = sizes[bounds.name]
            if size < bounds.least or (bounds.most is not None and size > bounds.most):
                raise InvalidConfig(
                    f"the model was exported for {bounds}, and this call has {size}"
                )
        for text, check in zip(self._form.checks, self._checks, strict=True):
            if not check(sizes):
                raise InvalidConfig(f"the model was exported for sizes of which `{text}`: {sizes}")
        return tuple(sizes[bounds.name] for bounds in self._form.sizes)

    def _check_shapes(self, shapes: Mapping[int, Shape], sizes: Sizes) -> None:
        for i, shape in shapes.items():
            if [expected(sizes) for expected in self._shapes[i]] != list(shape):
                form = self._form.given[i]
                assert isinstance(form, GivenTensor)
                raise InvalidConfig(self._told(form, shape))

    def _told(self, form: GivenTensor, shape: Shape) -> str:
        ranges = ", ".join(map(str, self._form.sizes))
        return (
            f"{form.path} is {list(shape)}, and was exported as {form}"
            f"{f' with {ranges}' if ranges else ''}: export it with `dynamic_shapes` for this size"
        )


def as_compiled_for(tensor: Tensor) -> Tensor:
    """The tensor as it has to lie in memory, where code is compiled for one layout: contiguous, and
    on a GPU aligned."""
    tensor = tensor.contiguous()
    is_aligned = tensor.device.type == "cpu" or tensor.data_ptr() % _ALIGNMENT == 0
    return tensor if is_aligned else tensor.clone()


def _check_leaf(leaf: object, form: GivenTensor | GivenValue) -> None:
    if isinstance(form, GivenTensor):
        if not isinstance(leaf, Tensor):
            raise InvalidConfig(f"{form.path} is {leaf!r}, and was exported as {form}")
        if type(leaf) not in (Tensor, nn.Parameter, nn.Buffer) or is_functorch_wrapped_tensor(leaf):
            raise InvalidConfig(
                f"{form.path} is a {type(leaf).__name__} of a class of its own or inside of "
                f"`torch.vmap`, and was exported as {form}: compiled code takes plain tensors"
            )
        if leaf.dtype != form.dtype or leaf.device.type != form.device:
            seen = f"{leaf.dtype} on {leaf.device.type}"
            raise InvalidConfig(f"{form.path} is {seen}, and was exported as {form}")
    elif isinstance(leaf, Tensor) or type(leaf) is not type(form.value) or leaf != form.value:
        told = json.dumps(form.value)
        raise InvalidConfig(f"{form.path} was exported as {told}, which is a part of the graph")
