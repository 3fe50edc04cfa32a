"""Rows are views of what they lie in, and lie as they did there once they are together again."""

import pytest
import torch

from dit_cachegraph.batches.rows import apart, together

WHOLE = torch.arange(4 * 6 * 8.0).reshape(4, 6, 8)
LAYOUTS = {
    "contiguous": WHOLE,
    "a part of something wider": WHOLE[:, :, 2:5],
    "tokens and channels swapped": WHOLE.transpose(1, 2),
    "one number a sample": WHOLE[:, 0, 0],
    "of every other token": WHOLE[:, ::2],
    "one value for all tokens": WHOLE[:, :1].expand(-1, 6, -1),
    "one value for all samples": WHOLE[:1].expand(4, -1, -1),
    "a mask": WHOLE > 50,
}


@pytest.mark.parametrize("whole", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("picked", [(0, 1, 2, 3), (2, 0), (3,), (1, 1)])
def test_rows_that_are_together_lie_as_before(whole, picked):
    rows = apart(whole)
    assert all(row.data_ptr() == whole[k].data_ptr() for k, row in enumerate(rows))
    some = together([rows[k] for k in picked])
    assert some.stride() == whole.stride()
    assert some.equal(whole[list(picked)])


def test_estimates_are_together_as_rows_of_a_stream():
    own = torch.ones(1, 6, 8)
    assert together([apart(WHOLE)[2], own]).equal(torch.cat([WHOLE[2:3], own]))
