"""The arithmetic of the cache path, one function an operation, and the way to the host."""

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from dit_cachegraph.plan import StreamKind

LATENTS_SAMPLE_SIZE = 256
MAX_SAMPLED = 65_536  # elements of a sample's stream; smaller ones are taken whole
MAX_FACTORS = 5  # of one `taylor_apply` or `forecast_error`
_SPREAD = 2654435761  # odd and large: neighbours in a sample are far apart in what it is of


def load_kernels() -> None:
    """Register `torch.ops.dit_cachegraph`, before anything is traced. What runs calls the functions
    behind it, which need neither Dynamo nor Inductor."""
    import dit_cachegraph_kernels.graph_ops  # noqa: F401, PLC0415


def _kernels() -> ModuleType:
    """Not imported with the package, since Triton takes its time."""
    import dit_cachegraph_kernels  # noqa: PLC0415

    return dit_cachegraph_kernels


def build_kernels(kind: StreamKind, batch_dim: int | None) -> None:
    """Build the kernels that are called on streams of this kind; nothing where they lie on a device
    without any, or their width is open."""
    if kind.width is not None:
        _kernels().build_kernels(kind.dtype, kind.device, kind.width, batch_dim)


def latents_sample(
    latents: Tensor, places: Tensor | None = None, *, is_batched: bool = False
) -> Tensor:
    """`LATENTS_SAMPLE_SIZE` elements from all over the latents, or from all over each sample of a
    batch `[B, ...]`, flat: enough to tell whether two calls are steps of one image. `places` are
    `sample_places`, if these are known."""
    if places is None:
        num_samples = latents.shape[0] if is_batched else 1
        places = sample_places(num_samples, latents.numel(), latents.device)
    return latents.take(places)


def clock(timestep: Tensor) -> tuple[float, float]:
    """(max, sum) over all elements of a timestep on the host, in float32. Both, because a timestep
    per token may begin with zeros for ever (the frame that image-to-video keeps). Zeros, where it
    has no element."""
    if timestep.numel() == 0:
        return 0.0, 0.0
    if timestep.numel() == 1:
        number = timestep.float().item()
        return number, number
    flat = timestep.float().reshape(-1)
    return flat.amax().item(), flat.sum().item()


def spread_over(length: int, count: int, device: torch.device) -> Tensor:
    """`count` indices from all over a row of `length`, the same each time; none of an empty one."""
    return torch.arange(count if length else 0, device=device) * _SPREAD % max(length, 1)


def sample_places(num_samples: int, num_elements: int, device: torch.device) -> Tensor:
    """Where latents of so many samples, and so many elements in all, are looked at, counted over
    all of them. To be kept: it waits for the device, and is then there for each of its streams."""
    length = num_elements // max(num_samples, 1)
    host = torch.device("cpu")  # Not the one that is the default for new tensors.
    each = spread_over(length, LATENTS_SAMPLE_SIZE, host)
    begins = torch.arange(num_samples, device=host).unsqueeze(1) * length
    return (begins + each).reshape(-1).to(device)


def sampled(stream: Tensor, batch_dim: int | None) -> Tensor:
    """Up to `MAX_SAMPLED` elements from all over each sample of a stream, [B, n], in a storage of
    its own."""
    samples = stream.unsqueeze(0) if batch_dim is None else stream.movedim(batch_dim, 0)
    flat = samples.reshape(samples.shape[0], -1)
    if flat.shape[1] <= MAX_SAMPLED:
        return flat.clone()
    return flat[:, spread_over(flat.shape[1], MAX_SAMPLED, flat.device)]


def content(tensor: Tensor) -> Tensor:
    """Two numbers that tensors of equal shape and content share, [2] float64: a sum, and one in
    which each element has a weight of its own."""
    return contents([tensor])[0]


def contents(tensors: Sequence[Tensor]) -> Tensor:
    """The same of tensors that are of one shape, [N, 2]. To the last bit, of each as if alone: a
    sum over all of them at once would round as their number has it."""
    sums, waves = [], None
    for tensor in tensors:
        real = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
        flat = real.reshape(-1).double()
        if waves is None:
            places = torch.arange(flat.numel(), device=flat.device, dtype=torch.float64)
            waves = places.cos_()
        sums += [flat.sum(), flat.dot(waves)]
    return torch.stack(sums).reshape(-1, 2)


def plain_parts(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors, and in the place of one that holds others (a nested one its values and offsets)
    those that it holds."""
    parts: list[Tensor] = []
    for tensor in tensors:
        if is_traceable_wrapper_subclass(tensor):
            names, _ = tensor.__tensor_flatten__()
            parts += plain_parts([getattr(tensor, name) for name in names])
        else:
            parts.append(tensor)
    return parts


def host_numbers(numbers: Sequence[float]) -> Tensor:
    """Numbers in float32 on the host, whatever the user has as the default for new tensors."""
    return torch.tensor(numbers, dtype=torch.float32, device="cpu")


class HostCopy:
    """Numbers on their way to the host, which nobody else writes to. On a GPU they go to pinned
    memory as soon as they exist: nothing waits for them but `read`, the only place where the host
    waits for a device."""

    __slots__ = ("_arrivals", "_numbers")

    def __init__(self, numbers: Sequence[Tensor]) -> None:
        self._numbers: list[Tensor] = []
        self._arrivals: dict[torch.device, torch.cuda.Event] = {}
        self.add(numbers)

    def add(self, numbers: Sequence[Tensor], *, are_callers: bool = False) -> None:
        """Numbers that exist only now. The caller's may be written to before they are read."""
        if all([n.is_cpu for n in numbers]):
            self._numbers += [n.clone() for n in numbers] if are_callers else numbers
            return
        self._numbers += [n.to("cpu", non_blocking=n.is_cuda, copy=True) for n in numbers]
        for device in {n.device for n in numbers if n.is_cuda}:
            self._arrivals[device] = torch.cuda.current_stream(device).record_event()

    def read(self) -> list[Tensor]:
        """All of them, on the host."""
        for arrival in self._arrivals.values():
            arrival.synchronize()
        return self._numbers


def probe_sums(
    hidden: Tensor,
    hidden_in: Tensor | None,
    previous: Tensor,
    batch_dim: int | None,
    downsample_factor: int = 1,
    important_condition_threshold: float = 0.0,
) -> Tensor:
    """Per sample `sum|v - p|` and `sum|p|` of `v = hidden - hidden_in` (or `hidden` itself) against
    `p = previous`, which has every `downsample_factor`-th channel: [B, 2] float32."""
    if hidden_in is None:
        hidden_in = hidden.new_zeros(()).expand(hidden.shape)
    sums: Tensor = _kernels().residual_diff(
        hidden, hidden_in, previous, batch_dim, None, downsample_factor,
        important_condition_threshold,
    )  # fmt: skip
    return sums


def distance(value: Tensor, reference: Tensor, batch_dim: int | None) -> Tensor:
    """Per sample `sum|v - r|` and `sum|r|`: [B, 2] float32."""
    (sums,) = _kernels().block_diff([value], [reference], batch_dim)
    return sums


def distances(values: Sequence[Tensor], references: Sequence[Tensor]) -> Tensor:
    """The same for pairs that are all of one shape, samples first: [N, B, 2] float32."""
    sums: Tensor = _kernels().block_diff(values, references, 0)
    return sums


def probe_value(hidden: Tensor, hidden_in: Tensor | None, downsample_factor: int) -> Tensor:
    """What is kept of a probe, in a storage of its own: every so many channels of it."""
    if downsample_factor > 1:
        hidden = hidden[..., ::downsample_factor]
        hidden_in = None if hidden_in is None else hidden_in[..., ::downsample_factor]
    return residual(hidden, hidden_in)


def noise_level(timestep: Tensor) -> Tensor:
    """A timestep, that counts noise from 0 to 1 or in thousandths, as a share of it: one number."""
    level = timestep.float().amax()
    return torch.where(level > 1, level / 1000, level)


def filter_noise(value: Tensor, noise: Tensor, grid: Sequence[int], power: float) -> Tensor:
    """The Wiener filter of a share of `noise` over the tokens of `value`, [..., tokens, channels],
    which lie on `grid`, for a content whose spectrum falls with `power`. Scaled to a mean gain of
    1 on each axis."""
    axes = tuple(range(-1 - len(grid), -1))
    noise = noise.clamp(1e-6, 1 - 1e-6)
    spectrum = torch.fft.rfftn(value.float().unflatten(-2, tuple(grid)), dim=axes)
    for axis, size in zip(axes, grid, strict=True):
        frequency = torch.fft.fftfreq(size, dtype=torch.float32, device=value.device).abs()
        content = 1 / (frequency**power + 1e-16)
        gain = (1 - noise) * content / ((1 - noise) ** 2 * content + noise**2 + 1e-16)
        gain = (gain / gain.mean())[: spectrum.shape[axis]]
        spectrum = spectrum * gain.reshape(-1, *[1] * (-1 - axis))
    filtered = torch.fft.irfftn(spectrum, s=tuple(grid), dim=axes)
    return filtered.flatten(axes[0], -2).to(value.dtype)


def forecast(base: Tensor | None, snapshots: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """`base` plus the weighted sum of the snapshots, added in float32; in a storage of its own."""
    weights = list(weights)
    if base is not None and _is_replay(weights):
        # The same bytes as a kernel of ours moves, at a fraction of its time on the host.
        return torch.add(base, snapshots[-1])
    if base is None:
        # The sum needs something to begin with: the last snapshot, whose weight is less by one.
        base = snapshots[-1]
        weights[-1] -= 1.0
    pairs = _that_count(snapshots, weights)
    # Of several passes none but the last rounds.
    out = _in_passes(base.float() if len(pairs) > MAX_FACTORS else base, pairs)
    return out.clone() if out is base else out.to(base.dtype)


def _is_replay(weights: Sequence[float]) -> bool:
    return weights[-1] == 1.0 and not any(weights[:-1])


_Pairs = list[tuple[Tensor, float]]


def _that_count(snapshots: Sequence[Tensor], weights: Sequence[float]) -> _Pairs:
    return [(s, w) for s, w in zip(snapshots, weights, strict=True) if w != 0.0]


def _in_passes(base: Tensor, pairs: _Pairs) -> Tensor:
    """`base` plus all of them, as many at once as a kernel takes."""
    for i in range(0, len(pairs), MAX_FACTORS):
        some, their = zip(*pairs[i : i + MAX_FACTORS], strict=True)
        base = _kernels().taylor_apply(base, list(some), 0.0, list(their))
    return base


def residual(hidden: Tensor, hidden_in: Tensor | None) -> Tensor:
    """What a region added to a stream, or all of it where there is nothing that it was added to; in
    a storage of its own."""
    return hidden.clone() if hidden_in is None else torch.sub(hidden, hidden_in)


def forecast_error(
    hidden: Tensor,
    hidden_in: Tensor | None,
    snapshots: Sequence[Tensor],
    weights: Sequence[float],
    batch_dim: int | None,
) -> tuple[Tensor, Tensor]:
    """The `residual` of a stream, and what a `forecast` of it by these snapshots missed: per sample
    `sum|f - hidden|` and `sum|hidden|`, [B, 2] float32. In one pass, and a sum."""
    pairs = _that_count(snapshots, weights) or [(snapshots[-1], 0.0)]
    if len(pairs) > MAX_FACTORS:
        pairs = [(_in_passes(torch.zeros_like(hidden, dtype=torch.float32), pairs), 1.0)]
    some, their = map(list, zip(*pairs, strict=True))
    kept: Tensor
    kept, sums = _kernels().forecast_error(hidden, hidden_in, some, their, batch_dim)
    return kept, sums
