"""The forms of an op that are compared, and what each must give.

`op` is this project's: the kernel on a GPU, compiled by Inductor on a CPU. `eager` is the formula
as one would write it, `compiled` the same under `torch.compile`. `cache-dit` is the decision of
that library, from its description: the residual, then the mean of |previous - residual| over that
of |previous|, each step a kernel and a tensor in the dtype of the stream.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

import dit_cachegraph_kernels.graph_ops  # noqa: F401  # registers the ops
from bench.kernels.cases import DTYPES, NUM_BLOCKS, OPS_WITH_ORDER, Case

OP, EAGER, COMPILED, CACHE_DIT = "op", "eager", "compiled", "cache-dit"
FORMS = (OP, EAGER, COMPILED, CACHE_DIT)
GAP, STEPS_AHEAD = 2.0, 3.0

Inputs = Sequence[Tensor]
Result = Tensor | Sequence[Tensor]
Form = Callable[..., Result]


def num_inputs(case: Case) -> int:
    """How many tensors a call takes."""
    if case.op in OPS_WITH_ORDER:
        return (case.order or 0) + (3 if case.op == "forecast_error" else 2)
    return {"residual_apply": 2, "block_diff": 2 * NUM_BLOCKS}.get(case.op, 3)


def make_inputs(case: Case, device: torch.device, seed: int) -> list[Tensor]:
    """The tensors of one call: streams of normal numbers."""
    generator = torch.Generator(device).manual_seed(seed)
    return [
        torch.randn(case.shape, generator=generator, device=device, dtype=DTYPES[case.dtype])
        for _ in range(num_inputs(case))
    ]


def forms_of(case: Case, device: torch.device, inner: str = "inductor") -> Mapping[str, Form]:
    """The forms of a case by name; each is called with the tensors of `make_inputs`. `inner`
    compiles those that are compiled."""
    op, formula = _OPS[case.op], formula_of(case)
    if device.type == "cpu":
        op = torch.compile(op, backend=inner, dynamic=False)
    compiled = torch.compile(formula, backend=inner, dynamic=False)
    forms = {OP: op, EAGER: formula, COMPILED: compiled}
    return forms | ({CACHE_DIT: _cache_dit_diff} if case.op == "residual_diff" else {})


def formula_of(case: Case) -> Form:
    """The op's formula in plain PyTorch; in float64 it says what every form must give."""
    return _FORMULAS[case.op]


def _op_residual_diff(hidden: Tensor, hidden_in: Tensor, previous: Tensor) -> Tensor:
    out: Tensor = torch.ops.dit_cachegraph.residual_diff(hidden, hidden_in, previous)
    return out


def _op_residual_store(hidden: Tensor, hidden_in: Tensor, out: Tensor) -> Tensor:
    torch.ops.dit_cachegraph.residual_store(hidden, hidden_in, out)
    return out


def _op_residual_apply(hidden_in: Tensor, residual: Tensor) -> Tensor:
    (out,) = torch.ops.dit_cachegraph.residual_apply([hidden_in], [residual])
    return out


def _op_taylor_update(value: Tensor, *factors: Tensor) -> Inputs:
    torch.ops.dit_cachegraph.taylor_update(value, factors, GAP)
    return factors


def _op_taylor_apply(hidden_in: Tensor, *factors: Tensor) -> Tensor:
    out: Tensor = torch.ops.dit_cachegraph.taylor_apply(hidden_in, factors, STEPS_AHEAD)
    return out


def _op_forecast_error(hidden: Tensor, hidden_in: Tensor, *factors: Tensor) -> Inputs:
    coefficients = _powers(len(factors))
    kept, sums = torch.ops.dit_cachegraph.forecast_error(hidden, hidden_in, factors, coefficients)
    return sums, kept


def _op_block_diff(*blocks: Tensor) -> Tensor:
    inputs, cached = blocks[:NUM_BLOCKS], blocks[NUM_BLOCKS:]
    out: Tensor = torch.ops.dit_cachegraph.block_diff(inputs, cached)
    return out


def wide(x: Tensor) -> Tensor:
    """At least float32."""
    return x if x.dtype == torch.float64 else x.float()


def _residual_diff(hidden: Tensor, hidden_in: Tensor, previous: Tensor) -> Tensor:
    residual, previous = wide(hidden) - wide(hidden_in), wide(previous)
    moved = (residual - previous).abs().sum((1, 2))
    return torch.stack([moved, previous.abs().sum((1, 2))], 1)


def _cache_dit_diff(hidden: Tensor, hidden_in: Tensor, previous: Tensor) -> Tensor:
    residual = hidden - hidden_in
    return (previous - residual).abs().mean() / previous.abs().mean()


def _residual_store(hidden: Tensor, hidden_in: Tensor, out: Tensor) -> Tensor:
    return out.copy_(hidden - hidden_in)


def _residual_apply(hidden_in: Tensor, residual: Tensor) -> Tensor:
    return hidden_in + residual


def _taylor_update(value: Tensor, *factors: Tensor) -> Inputs:
    new = [value]
    for old in factors[:-1]:
        new.append((new[-1] - old) / GAP)
    for factor, x in zip(factors, new, strict=True):
        factor.copy_(x)
    return factors


def _taylor_apply(hidden_in: Tensor, *factors: Tensor) -> Tensor:
    out = hidden_in
    for factor, power in zip(factors, _powers(len(factors)), strict=True):
        out = out + factor * power
    return out


def _powers(num: int) -> list[float]:
    return [STEPS_AHEAD**i / math.factorial(i) for i in range(num)]


def _forecast_error(hidden: Tensor, hidden_in: Tensor, *factors: Tensor) -> Inputs:
    forecast = _taylor_apply(wide(hidden_in), *map(wide, factors)).to(hidden.dtype)
    return _sums(wide(forecast), wide(hidden)), hidden - hidden_in


def _block_diff(*blocks: Tensor) -> Tensor:
    pairs = zip(blocks[:NUM_BLOCKS], blocks[NUM_BLOCKS:], strict=True)
    return torch.stack([_sums(wide(x), wide(cached)) for x, cached in pairs])


def _sums(x: Tensor, cached: Tensor) -> Tensor:
    return torch.stack([(x - cached).abs().sum((1, 2)), cached.abs().sum((1, 2))], 1)


_OPS: Mapping[str, Form] = MappingProxyType(
    {
        "residual_diff": _op_residual_diff,
        "residual_store": _op_residual_store,
        "residual_apply": _op_residual_apply,
        "taylor_update": _op_taylor_update,
        "taylor_apply": _op_taylor_apply,
        "forecast_error": _op_forecast_error,
        "block_diff": _op_block_diff,
    }
)
_FORMULAS: Mapping[str, Form] = MappingProxyType(
    {
        "residual_diff": _residual_diff,
        "residual_store": _residual_store,
        "residual_apply": _residual_apply,
        "taylor_update": _taylor_update,
        "taylor_apply": _taylor_apply,
        "forecast_error": _forecast_error,
        "block_diff": _block_diff,
    }
)
