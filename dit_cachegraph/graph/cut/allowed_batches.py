"""Which sizes of a batch compiled segments may be called with.

Dynamo checks its guards for the size of the call. A region that runs for some of the samples is
called with a smaller one, which nobody else checks: so what was assumed of the symbol while it was
traced and compiled is asked here once more.

    s0 >= 2, Eq(s0, s3), s0 < 4096, Eq(Mod(s0, 4), 0)      2 and 6 are not allowed, 4 and 8 are
"""

from dataclasses import dataclass

import sympy
import torch
from torch._guards import TracingContext


@dataclass(frozen=True, slots=True)
class AllowedBatches:
    """True for the sizes in a range for which what was assumed of the `batch` holds; None: for
    none."""

    batch: sympy.Symbol | None
    fewest: object = 2
    most: object = 2
    assumed: tuple[sympy.Expr, ...] = ()

    def __call__(self, size: int) -> bool:
        if self.batch is None or not bool(self.fewest <= size) or not bool(size <= self.most):  # type: ignore[operator]
            return False
        return all(each.subs(self.batch, size) == sympy.true for each in self.assumed)


NONE_ALLOWED = AllowedBatches(None)


def allowed_batches(batch: int | torch.SymInt) -> AllowedBatches:
    """The sizes that hold in place of `batch`, of the graph that was just compiled. What relates
    the batch to another size of the call allows none."""
    if not isinstance(batch, torch.SymInt) or not isinstance(batch.node.expr, sympy.Symbol):
        return NONE_ALLOWED
    context, symbol = TracingContext.try_get(), batch.node.expr
    mode = None if context is None else context.fake_mode
    if mode is None or mode.shape_env is None:
        return NONE_ALLOWED
    shapes = mode.shape_env
    guards = [shapes.replace(guard.expr) for guard in shapes.guards]
    guards = [guard for guard in guards if symbol in guard.free_symbols]
    known = shapes.var_to_range.get(symbol)
    fewest, most = (2, 2) if known is None else (known.lower, known.upper)
    return AllowedBatches(symbol, fewest, most, tuple(guards))
