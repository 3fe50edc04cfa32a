"""What the conditioning of each sample says, read of all of them in one copy.

    text     row 0 | row 1 | row 2      a sum each
    masks    row 0 | row 1 | row 2      a sum each
    rotary   one for all                one sum

Of callers who put their batches together anew at each step nothing is known by its objects, so that
all of it is read at each.
"""

import functools
from collections.abc import Sequence

from torch import Tensor

from dit_cachegraph import ops
from dit_cachegraph.requests.conditioning import Numbers


class Contents:
    """`of_samples` has the tensors of each, in the same order. Nothing is summed before the first
    of them begins, and then all of it at once: their owner may write to them after the call."""

    def __init__(self, of_samples: Sequence[Sequence[Tensor]]) -> None:
        self._of_samples = of_samples
        self._copy: ops.HostCopy | None = None
        self._numbers: list[tuple[float, ...]] | None = None

    def begin(self, k: int) -> Numbers:
        """Begin to sum, and return what reads the sums of one sample."""
        if self._copy is None:
            columns = list(zip(*self._of_samples, strict=True))
            self._copy = ops.HostCopy([ops.contents(_rows_of(column)) for column in columns])
        return functools.partial(self._of, k, self._copy)

    def _of(self, k: int, copy: ops.HostCopy) -> Sequence[float]:
        if self._numbers is None:
            self._numbers = [()] * len(self._of_samples)
            for table in copy.read():
                pairs = table.tolist()
                self._numbers = [
                    (*own, *pairs[i % len(pairs)]) for i, own in enumerate(self._numbers)
                ]
        return self._numbers[k]


def _rows_of(column: Sequence[Tensor]) -> Sequence[Tensor]:
    """The tensors of all samples; one alone, where they share it."""
    return column[:1] if all(tensor is column[0] for tensor in column) else column
