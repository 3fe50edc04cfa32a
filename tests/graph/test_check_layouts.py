"""Values lie contiguous between blocks, and otherwise where Dynamo traced them: what asks a value
how it lies gives what eager PyTorch gives, what is made of one crosses the next border as it was
promised, and what goes by the numbers of the trace is refused."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import dit_cachegraph as dc
from support.toy_dits import DIM, SineEmbedding, ToyDiT
from support.toy_runs import assert_cached, assert_refused

BY_STRIDES = r"reads `\w+` by its strides \(`{}` at test_check_layouts.py:\d+\)"
Read = Callable[[Tensor], Tensor]


@torch.library.custom_op("toy_layouts::read", mutates_args=())
def read(x: Tensor, strides: list[int] | None = None, width: int = 0) -> Tensor:
    return x.as_strided(x.shape, x.stride() if strides is None else strides).clone()


@read.register_fake
def _(x: Tensor, strides: list[int] | None = None, width: int = 0) -> Tensor:
    return torch.empty_like(x)


def by_view(h: Tensor) -> Tensor:
    return h.mT.view(-1).view_as(h.mT).mT


def by_view_by_name(h: Tensor) -> Tensor:
    return h.mT.view(size=(-1,)).view(h.mT.shape).mT


def by_as_strided(h: Tensor) -> Tensor:
    return h.as_strided(h.shape, h.stride())


def by_own_operator(h: Tensor) -> Tensor:
    return read(h)


def by_own_operator_and_its_width(h: Tensor) -> Tensor:
    return read(h, width=DIM)


def by_own_operator_and_strides(h: Tensor) -> Tensor:
    return read(h, list(h.stride()))


class ReadingBlock(nn.Module):
    """Reads the stream by `read`, and hands it on with its tokens side by side."""

    def __init__(self, read: Read) -> None:
        super().__init__()
        self.read, self.linear = read, nn.Linear(DIM, DIM)

    def forward(self, h: Tensor, temb: Tensor) -> Tensor:
        h = h + temb * torch.tanh(self.linear(self.read(h)))
        return h.mT.contiguous().mT


class TransposedDiT(ToyDiT):
    """The stream lies so from the first block on."""

    def __init__(self, read: Read) -> None:
        torch.manual_seed(0)
        super().__init__([ReadingBlock(read) for _ in range(4)])
        self.embed = SineEmbedding()

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        return super().trunk(h.mT.contiguous().mT, temb, e)


@pytest.mark.parametrize("inner_backend", ["eager", "inductor"])
@pytest.mark.parametrize("read", [by_view, by_own_operator, by_own_operator_and_its_width])
def test_what_asks_the_value_is_cached(read: Read, inner_backend: str) -> None:
    graph = assert_cached(TransposedDiT(read), inner_backend=inner_backend)
    assert graph.num_blocks == 4


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize(
    ("read", "name"),
    [
        (by_as_strided, "as_strided"),
        (by_own_operator_and_strides, "read"),
        (by_view_by_name, "view"),
    ],
)
def test_what_goes_by_numbers_is_refused(read: Read, name: str, dynamic: bool | None) -> None:
    assert_refused(TransposedDiT(read), BY_STRIDES.format(name), dynamic)


class PlainDiT(TransposedDiT):
    """The stream lies contiguous where it is read, and the blocks hand it on otherwise."""

    def __init__(self, read: Read) -> None:
        super().__init__(lambda h: read(h.contiguous()))


@pytest.mark.parametrize("read", [by_as_strided, by_own_operator_and_strides])
def test_what_goes_by_numbers_of_a_contiguous_value_is_cached(read: Read) -> None:
    assert_cached(PlainDiT(read))


class HandingBlock(ReadingBlock):
    """Hands on what it was given too, transposed: that was contiguous when it was traced."""

    def forward(self, h: Tensor, temb: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(h, temb), h.mT


class HandingDiT(TransposedDiT):
    """Each token is told what the others were before."""

    def __init__(self) -> None:
        super().__init__(lambda h: h)
        self.blocks = nn.ModuleList(HandingBlock(lambda h: h) for _ in range(4))

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        h = h.mT.contiguous().mT
        for block in self.blocks:
            h, came = block(h, temb)
            h = h + 0.1 * torch.softmax(came, dim=-1).mT
        return h


@pytest.mark.parametrize("inner_backend", ["eager", "inductor"])
def test_what_is_made_of_a_stream_crosses_as_promised(inner_backend: str) -> None:
    assert_cached(HandingDiT(), inner_backend=inner_backend)


class BareDiT(TransposedDiT):
    """The first block is given the latents as they came."""

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor | None = None
    ) -> Tensor:
        h, temb = hidden_states, self.embed(timestep)
        for block in self.blocks:
            h = block(h, temb)
        return h


@pytest.mark.parametrize(
    ("read", "name"), [(by_as_strided, "as_strided"), (by_own_operator_and_strides, "read")]
)
@torch.no_grad()
def test_latents_that_came_otherwise(read: Read, name: str) -> None:
    torch._dynamo.reset()
    model = BareDiT(read)
    compiled = torch.compile(model, backend="cachedit", options={"inner_backend": "eager"})
    latents = torch.randn(2, DIM, DIM).mT  # Its strides are those of others, in another order.
    with pytest.warns(dc.NotCachedWarning, match=BY_STRIDES.format(name)):
        actual = compiled(latents, torch.tensor([90.0, 90.0]))
    torch.testing.assert_close(actual, model(latents, torch.tensor([90.0, 90.0])))
