"""A block runs its siblings' function if all that it lacks is a value that nobody reads: not if it
lacks a write, or a context."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from support.toy_dits import DIM, SingleBlock, ToyDiT, TwoListDiT
from support.toy_runs import assert_cached

Hidden = Callable[[nn.Linear, Tensor], Tensor]


class HiddenBlock(nn.Module):
    """h -> h + gate * down(hidden(up, h)), with enough of its own that a few nodes are a small
    part of it."""

    def __init__(self, hidden: Hidden) -> None:
        super().__init__()
        self.hidden = hidden
        self.up, self.down = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)

    def forward(self, h: Tensor, temb: Tensor) -> Tensor:
        x = self.hidden(self.up, h.sigmoid().exp().sin().cos())
        return h + torch.tanh(temb) * self.down(x.sin().cos())


def plain(up: nn.Linear, x: Tensor) -> Tensor:
    return torch.tanh(up(x))


def with_setitem(up: nn.Linear, x: Tensor) -> Tensor:
    x = plain(up, x)
    x[:, :1] = 0.0
    return x


def with_method(up: nn.Linear, x: Tensor) -> Tensor:
    x = plain(up, x)
    x.mul_(2.0)
    return x


def with_out(up: nn.Linear, x: Tensor) -> Tensor:
    x = plain(up, x)
    torch.add(x, 1.0, out=x)
    return x


def with_autocast(up: nn.Linear, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = torch.tanh(up(x))
    return x.float()


def without_autocast(up: nn.Linear, x: Tensor) -> Tensor:
    return plain(up, x).float()


class WritingSingleBlock(SingleBlock):
    """Nobody reads the text of the last one, so that its graph lacks the node which cuts it out."""

    def forward(self, h: Tensor, e: Tensor, temb: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat([e, h], dim=1)
        both[:, -1:] = 0.0
        both = both + torch.tanh(temb) * self.linear(both)
        return both[:, : e.shape[1]], both[:, e.shape[1] :]


def num_compiled_of(*hidden: Hidden) -> int:
    torch.manual_seed(0)
    return assert_cached(ToyDiT([HiddenBlock(each) for each in hidden])).num_compiled


@pytest.mark.parametrize(
    ("siblings", "last"),
    [
        (with_setitem, plain),
        (with_method, plain),
        (with_out, plain),
        (with_autocast, without_autocast),
    ],
    ids=lambda function: function.__name__,
)
def test_block_that_lacks_an_effect_of_its_siblings(siblings: Hidden, last: Hidden) -> None:
    assert num_compiled_of(siblings, siblings, siblings, last) == 4


def test_block_that_lacks_only_a_value_nobody_reads() -> None:
    model = TwoListDiT(2, 0)
    model.single_blocks = nn.ModuleList(WritingSingleBlock() for _ in range(3))
    assert assert_cached(model).num_compiled == 4


class MeasuringBlock(HiddenBlock):
    """Hands on a value beside its stream, which Dynamo drops where nobody reads it."""

    def __init__(self) -> None:
        super().__init__(plain)

    def forward(self, h: Tensor, temb: Tensor) -> tuple[Tensor, Tensor]:
        h = super().forward(h, temb)
        return h, h[:, :1]


class MeasuredDiT(ToyDiT):
    """Of one of its blocks alone that value is read."""

    def __init__(self, measured: int) -> None:
        torch.manual_seed(0)
        super().__init__([MeasuringBlock() for _ in range(2)])
        self.measured = measured

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        found = h
        for i, block in enumerate(self.blocks):
            h, first = block(h, temb)
            found = first if i == self.measured else found
        return h + found


@pytest.mark.parametrize("measured", [0, 1])
def test_of_two_blocks_either_may_be_the_one_that_lacks_it(measured: int) -> None:
    assert assert_cached(MeasuredDiT(measured)).num_compiled == 3


@pytest.mark.parametrize("hidden", [with_setitem, with_autocast], ids=lambda f: f.__name__)
def test_blocks_that_all_have_the_effect(hidden: Hidden) -> None:
    assert num_compiled_of(hidden, hidden, hidden, hidden) == 3
