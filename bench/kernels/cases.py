"""What `bench.kernels` measures: which op, at the sizes of which model."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

OPS = (
    "residual_diff",
    "residual_store",
    "residual_apply",
    "taylor_update",
    "taylor_apply",
    "forecast_error",
    "block_diff",
)
OPS_WITH_ORDER = ("taylor_update", "taylor_apply", "forecast_error")
DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
)
MAX_ORDER = 4
# Blocks that `block_diff` compares; a model has 19 to 60, which takes its memory.
NUM_BLOCKS = 4


@dataclass(frozen=True, slots=True)
class Sizes:
    """One sample of a stream."""

    num_tokens: int
    num_channels: int


# Tokens after patching, with the text where a model joins it to the image.
MODELS: Mapping[str, Sizes] = MappingProxyType(
    {
        "small": Sizes(256, 384),  # DiT-S/2, 256 x 256
        "sd3": Sizes(4096, 1536),  # 1024 x 1024
        "flux": Sizes(4608, 3072),  # 1024 x 1024
        "hunyuan": Sizes(118_800, 3072),  # HunyuanVideo, 129 frames of 720p
        "wan": Sizes(75_600, 5120),  # Wan 14B, 81 frames of 720p
    }
)
# The same with fewer tokens, for a CPU.
SMALLER_MODELS: Mapping[str, Sizes] = MappingProxyType(
    {"small": Sizes(256, 384), "sd3": Sizes(1024, 1536), "flux": Sizes(1536, 3072)}
)


@dataclass(frozen=True, slots=True)
class Case:
    """One op at one size."""

    op: str
    model: str
    sizes: Sizes
    batch: int
    dtype: str
    order: int | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.batch, self.sizes.num_tokens, self.sizes.num_channels

    @property
    def num_passes(self) -> int:
        """How many times an op that reads and writes all once goes over a stream."""
        order = self.order or 0
        passes = {"residual_diff": 3, "residual_store": 3, "residual_apply": 3}
        passes |= {"taylor_update": 2 * (order + 1), "taylor_apply": order + 3}
        passes |= {"forecast_error": order + 4}
        return (passes | {"block_diff": 2 * NUM_BLOCKS})[self.op]

    @property
    def nbytes(self) -> int:
        """What such an op reads and writes."""
        batch, num_tokens, num_channels = self.shape
        return self.num_passes * batch * num_tokens * num_channels * DTYPES[self.dtype].itemsize

    def __str__(self) -> str:
        order = "" if self.order is None else f", order {self.order}"
        return f"{self.op} {self.model} x {self.batch}, {self.dtype}{order}"


@dataclass(frozen=True, slots=True)
class Selection:
    """What to measure; an empty choice stands for the default."""

    ops: tuple[str, ...] = OPS
    models: tuple[str, ...] = ()
    batches: tuple[int, ...] = ()
    dtypes: tuple[str, ...] = ()
    orders: tuple[int, ...] = ()

    @property
    def is_default(self) -> bool:
        return not (self.models or self.batches or self.dtypes or self.orders)


def cases_of(selection: Selection, models: Mapping[str, Sizes]) -> Iterator[Case]:
    """The product of what was chosen; by default each size, dtype, batch and order, but not all of
    them with each other: the others stay bfloat16, 1 and 2 while one changes."""
    varied = selection.models or tuple(models)
    if not selection.is_default:
        for model in varied:
            for batch in selection.batches or (1,):
                for dtype in selection.dtypes or ("bfloat16",):
                    yield from _of_size(selection, models, model, batch, dtype)
        return
    for model in varied:
        yield from _of_size(selection, models, model, 1, "bfloat16")
    for batch in (2, 8):
        for model in ("small", "flux"):
            yield from _of_size(selection, models, model, batch, "bfloat16")
    for dtype in ("float16", "float32"):
        yield from _of_size(selection, models, "flux", 1, dtype)
    for op in (op for op in OPS_WITH_ORDER if op in selection.ops):
        for order in (0, 1, 3, 4):
            yield Case(op, "flux", models["flux"], 1, "bfloat16", order)


def _of_size(
    selection: Selection, models: Mapping[str, Sizes], model: str, batch: int, dtype: str
) -> Iterator[Case]:
    for op in selection.ops:
        orders = (selection.orders or (2,)) if op in OPS_WITH_ORDER else (None,)
        for order in orders:
            yield Case(op, model, models[model], batch, dtype, order)
