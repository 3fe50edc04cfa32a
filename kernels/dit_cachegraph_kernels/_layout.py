"""Tensors of one shape as rows and columns that a kernel walks with strides alone.

Letters: B samples, T tokens, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

# A kernel takes two dimensions of rows and one of columns.
MAX_DIMS = 3

Strides = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Layout:
    """`strides[i]`: (outer rows, inner rows, columns) of `tensors[i]`, in elements.

    Row `r` of a tensor begins at `r // num_inner * strides[0] + r % num_inner * strides[1]`.
    `tensors` are those that were given, or copies of some whose layout has too many dimensions.
    `is_flat`: all elements are one row.
    """

    tensors: tuple[Tensor, ...]
    strides: tuple[Strides, ...]
    num_rows: int
    num_inner: int
    num_cols: int

    @property
    def is_flat(self) -> bool:
        return isinstance(self.num_rows, int) and self.num_rows == 1

    @property
    def operands(self) -> list[Tensor | int]:
        """Each tensor and its strides, as kernels take them."""
        pairs = zip(self.tensors, self.strides, strict=True)
        return [argument for x, strides in pairs for argument in (x, *strides)]

    @property
    def sample_operands(self) -> list[Tensor | int]:
        """The same with the stride from sample to sample first, for tensors that begin with it."""
        pairs = zip(self.tensors, self.strides, strict=True)
        return [argument for x, strides in pairs for argument in (x, x.stride(0), *strides)]


@dataclass(frozen=True, slots=True)
class _Dim:
    """One dimension of all tensors."""

    size: int
    strides: tuple[int, ...]

    def follows_on(self, inner: "_Dim") -> bool:
        """Whether this dimension continues where `inner` ends, in each tensor."""
        return all(o == i * inner.size for o, i in zip(self.strides, inner.strides, strict=True))


def as_samples(x: Tensor, batch_dim: int | None) -> Tensor:
    """A view [B, T..., C] of a tensor that has its samples along `batch_dim` (None: one sample)."""
    x = x.unsqueeze(0) if batch_dim is None else x.movedim(batch_dim, 0)
    return x.unsqueeze(-1) if x.dim() == 1 else x


def thinned(x: Tensor, downsample_factor: int) -> Tensor:
    """A view of every k-th channel."""
    return x if downsample_factor == 1 else x[..., ::downsample_factor]


def layout_of(tensors: Sequence[Tensor], first_dim: int = 0, num_fixed: int = 0) -> Layout:
    """The dimensions from `first_dim` on, in the order in which they lie in memory, merged where
    all tensors allow it; tensors that still have too many are copied.

    The last `num_fixed` (0 or 1) dimensions stay what they are: the columns.
    """
    if first_dim == num_fixed == 0 and all(x.is_contiguous() for x in tensors):
        num_elements = tensors[0].numel()
        return Layout(tuple(tensors), ((0, 0, 1),) * len(tensors), 1, 1, num_elements)
    dims = _merged(tensors, first_dim, num_fixed)
    if len(dims) > MAX_DIMS:
        tensors = [x.contiguous() for x in tensors]
        dims = _merged(tensors, first_dim, num_fixed)
    zeros = (0,) * len(tensors)
    outer, inner, cols = [*[_Dim(1, zeros)] * (MAX_DIMS - len(dims)), *dims]
    strides = zip(outer.strides, inner.strides, cols.strides, strict=True)
    return Layout(tuple(tensors), tuple(strides), outer.size * inner.size, inner.size, cols.size)


def _merged(tensors: Sequence[Tensor], first_dim: int, num_fixed: int) -> list[_Dim]:
    shape = tensors[0].shape
    all_dims = [
        _Dim(shape[d], tuple(x.stride(d) for x in tensors)) for d in range(first_dim, len(shape))
    ]
    num_free = len(all_dims) - num_fixed
    free = [dim for dim in all_dims[:num_free] if dim.size != 1]
    # A sum, since an expanded tensor says nothing of the order.
    free.sort(key=lambda dim: sum(dim.strides), reverse=True)
    dims: list[_Dim] = []
    for dim in free:
        if dims and dims[-1].follows_on(dim):
            dims[-1] = _Dim(dims[-1].size * dim.size, dim.strides)
        else:
            dims.append(dim)
    return [*dims, *all_dims[num_free:]]


def check_alike(op: str, **tensors: Tensor) -> None:
    """
    Raises:
        ValueError: the tensors differ in shape or device.
    """
    (first_name, first), *others = tensors.items()
    for name, x in others:
        if x.shape != first.shape:
            shapes = f"{tuple(x.shape)}, and {first_name} has {tuple(first.shape)}"
            raise ValueError(f"{op}: {name} has shape {shapes}; they must be equal")
        if x.device != first.device:
            devices = f"{x.device}, and {first_name} is on {first.device}"
            raise ValueError(f"{op}: {name} is on {devices}; move one of them")
