"""What the samples of a batch say is summed together, to the last bit as if each were alone."""

import pytest
import torch

from dit_cachegraph import ops
from dit_cachegraph.batches.contents import Contents
from dit_cachegraph.requests.conditioning import Content


def samples(num, *, length=7):
    torch.manual_seed(0)
    text, shared = torch.randn(num, length, 9), torch.randn(5, 3)
    return [(row, shared) for row in text.split(1)]


@pytest.mark.parametrize("num", [1, 2, 5])
def test_each_has_the_sums_that_it_has_alone(num):
    given = samples(num)
    contents = Contents(given)
    for k, tensors in enumerate(given):
        alone = [number for t in tensors for number in ops.content(t).tolist()]
        assert list(contents.begin(k)()) == alone
        assert Content("a", tensors, lambda k=k: contents.begin(k)).is_that_of(
            Content("a", tensors)
        )


def test_all_are_read_in_one_copy(host_copies):
    contents = Contents(samples(4))
    readers = [contents.begin(k) for k in range(4)]
    for reader in readers:
        reader()
    assert len(host_copies) == 1


def test_what_is_written_after_the_call_changes_nothing():
    given = samples(3)
    expected = [Contents(given).begin(k)() for k in range(3)]
    contents = Contents(given)
    readers = [contents.begin(k) for k in range(3)]
    for text, _ in given:
        text.zero_()
    assert [reader() for reader in readers] == expected
