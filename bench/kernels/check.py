"""No figure without its proof: what a form gives, against the formula in float64."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from bench.kernels.cases import DTYPES, Case
from bench.kernels.forms import CACHE_DIT, OP, Form, Inputs, Result, formula_of

# float64 takes four times the memory of bfloat16, so it is worked out for so many elements at once.
_CHUNK = 2**25
# Of the sums in float32, and of a result that is rounded to its dtype once.
MAX_SUM_ERROR = 1e-5
# The other forms round in between; they are reported, and only nonsense is refused.
MAX_OTHER_ERROR = 0.1


def errors_of(case: Case, forms: Mapping[str, Form], inputs: Inputs) -> dict[str, float]:
    """The greatest error of each form, relative to the greatest number of the result.

    Raises:
        RuntimeError: a form is wrong.
    """
    errors = {}
    for name, form in forms.items():
        given = [x.clone() for x in inputs] if _writes(case) else inputs
        result = form(*given)
        error = _error(case, name, result, inputs)
        limit = _limit(case) if name == OP else MAX_OTHER_ERROR
        if not error <= limit:
            raise RuntimeError(
                f"{case}: {name} is wrong by {error:.2g}, at most {limit:.2g} is right"
            )
        errors[name] = error
    return errors


def _writes(case: Case) -> bool:
    return case.op in ("residual_store", "taylor_update")


def _is_sum(case: Case) -> bool:
    return case.op in ("residual_diff", "forecast_error", "block_diff")


def _limit(case: Case) -> float:
    """What is summed of a forecast was rounded to its dtype before."""
    is_rounded = case.op == "forecast_error" or not _is_sum(case)
    return torch.finfo(DTYPES[case.dtype]).eps if is_rounded else MAX_SUM_ERROR


def _error(case: Case, name: str, result: Result, inputs: Inputs) -> float:
    results = [result] if isinstance(result, Tensor) else list(result)
    if _is_sum(case):
        wanted = _exact_sums(case, inputs)
        if name == CACHE_DIT:
            moved, size = wanted.sum(0)
            wanted = moved / size
        return _relative(results[0].double(), wanted)
    chunks = (_relative(got, wanted) for got, wanted in _exact_chunks(case, results, inputs))
    return max(chunks)


def _relative(got: Tensor, wanted: Tensor) -> float:
    return ((got - wanted).abs().amax() / wanted.abs().amax()).item()


def _slices(case: Case) -> Iterator[slice]:
    batch, num_tokens, num_channels = case.shape
    step = max(1, _CHUNK // (batch * num_channels))
    return (slice(i, i + step) for i in range(0, num_tokens, step))


def _exact_sums(case: Case, inputs: Inputs) -> Tensor:
    parts = [_exact(case, [x[:, s] for x in inputs])[0] for s in _slices(case)]
    return torch.stack(parts).sum(0)


def _exact_chunks(
    case: Case, results: Sequence[Tensor], inputs: Inputs
) -> Iterator[tuple[Tensor, Tensor]]:
    """(what a form gave, what is right), a part of the tokens at a time."""
    for part in _slices(case):
        wanted = _exact(case, [x[:, part] for x in inputs])
        for got, right in zip(results, wanted, strict=True):
            yield got[:, part].double(), right


def _exact(case: Case, inputs: Inputs) -> list[Tensor]:
    result = formula_of(case)(*(x.double() for x in inputs))
    return [result] if isinstance(result, Tensor) else list(result)
