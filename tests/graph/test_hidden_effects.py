"""Effects that a node of the graph doesn't show: those of the bodies that it runs (`wrap`,
`cond`), and writes that no schema tells. Each beside its neighbour that must pass."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops.wrap import wrap
from torch.nn import functional as F

from support.toy_dits import DIM, NUM_TOKENS, ToyDiT
from support.toy_runs import assert_cached, assert_refused

Body = Callable[["BodyBlock", Tensor, Tensor], Tensor]


def named(*functions: Body) -> list[object]:
    return [pytest.param(function, id=function.__name__) for function in functions]


class BodyBlock(nn.Module):
    """h -> h + gate * linear(body(h, log)), where all blocks are given the same `log`."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body
        self.linear = nn.Linear(DIM, DIM)
        self.register_buffer("mean", torch.zeros(NUM_TOKENS))
        self.register_buffer("var", torch.ones(NUM_TOKENS))
        self.register_buffer("table", torch.ones(4, DIM))

    def forward(self, h: Tensor, temb: Tensor, log: Tensor) -> Tensor:
        return h + torch.tanh(temb) * self.linear(self.body(self, h, log))


class LogDiT(ToyDiT):
    """The head reads the log that the blocks were given."""

    def __init__(self, body: Body) -> None:
        torch.manual_seed(0)
        super().__init__([BodyBlock(body) for _ in range(4)])

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        log = torch.ones_like(h)
        for block in self.blocks:
            h = block(h, temb, log)
        return h + log


def wrapped(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """By the simplest of the higher-order operators: it runs what it is given."""
    return wrap(function, *tensors)


def halved(h: Tensor, log: Tensor) -> Tensor:
    log.mul_(0.5)
    return torch.tanh(h + log)


def halved_two_bodies_deep(h: Tensor, log: Tensor) -> Tensor:
    return wrapped(halved, h, log).sin()


def write_in_body(block: BodyBlock, h: Tensor, log: Tensor) -> Tensor:
    return wrapped(halved, h, log)


def write_in_nested_bodies(block: BodyBlock, h: Tensor, log: Tensor) -> Tensor:
    return wrapped(halved_two_bodies_deep, h, log)


def write_in_body_to_a_view(block: BodyBlock, h: Tensor, log: Tensor) -> Tensor:
    return wrapped(lambda x, part: halved(x, part[:, :1]), h, log[:, 1:])


@pytest.mark.parametrize(
    "body",
    named(write_in_body, write_in_nested_bodies, write_in_body_to_a_view),
)
def test_write_in_a_body_to_what_the_block_did_not_make(body: Body) -> None:
    sentence = r"blocks\.0 writes in place \(`mul_` at \w+\.py:\d+\) to `\w+`, a value of prologue"
    assert_refused(LogDiT(body), sentence)


def write_in_body_to_a_copy(block: BodyBlock, h: Tensor, log: Tensor) -> Tensor:
    return wrapped(halved, h, log.clone())


def write_in_body_to_its_own(block: BodyBlock, h: Tensor, log: Tensor) -> Tensor:
    return wrapped(lambda x, other: halved(x, other + 1), h, log)


def no_write_in_body(block: BodyBlock, h: Tensor, log: Tensor) -> Tensor:
    return wrapped(torch.add, h, log)


@pytest.mark.parametrize(
    "body",
    named(write_in_body_to_a_copy, write_in_body_to_its_own, no_write_in_body),
)
def test_no_write_in_a_body_that_anyone_sees(body: Body) -> None:
    assert assert_cached(LogDiT(body)).num_blocks == 4


def dropout_in_body(block: BodyBlock, h: Tensor, log: Tensor) -> Tensor:
    return wrapped(lambda x: F.dropout(x, 0.5, block.training), h)


def noise_in_a_branch(block: BodyBlock, h: Tensor, log: Tensor) -> Tensor:
    if not block.training:
        return torch.cond(h.sum() > -1e9, torch.sin, torch.cos, (h,))
    return torch.cond(h.sum() > -1e9, lambda x: x + torch.rand_like(x), torch.cos, (h,))


@pytest.mark.parametrize("body", named(dropout_in_body, noise_in_a_branch))
def test_random_numbers_in_a_body(body: Body) -> None:
    sentence = r"blocks\.0 draws random numbers \(`\w+` at \w+\.py:\d+\).*call `eval\(\)`"
    assert_refused(LogDiT(body).train(), sentence)


@pytest.mark.parametrize("body", named(dropout_in_body, noise_in_a_branch))
def test_no_random_numbers_in_a_body_in_eval(body: Body) -> None:
    assert assert_cached(LogDiT(body).eval()).num_blocks == 4


def batch_norm(block: BodyBlock, h: Tensor, log: Tensor) -> Tensor:
    return F.batch_norm(h, block.mean, block.var, training=block.training)


def torch_batch_norm(block: BodyBlock, h: Tensor, log: Tensor) -> Tensor:
    mean, var = block.mean, block.var
    return torch.batch_norm(h, None, None, mean, var, block.training, 0.1, 1e-5, False)


def batch_norm_of_torch_ops(block: BodyBlock, h: Tensor, log: Tensor) -> Tensor:
    mean, var, training = block.mean, block.var, block.training
    return torch.ops.aten.native_batch_norm(h, None, None, mean, var, training, 0.1, 1e-5)[0]


def instance_norm(block: BodyBlock, h: Tensor, log: Tensor) -> Tensor:
    return F.instance_norm(h, block.mean, block.var, use_input_stats=block.training)


def embedding_of_bounded_norm(block: BodyBlock, h: Tensor, log: Tensor) -> Tensor:
    rows = (h[..., 0] > 0).long()
    return h + F.embedding(rows, block.table, max_norm=1.0 if block.training else None)


UNSAID_WRITES = (
    batch_norm,
    torch_batch_norm,
    batch_norm_of_torch_ops,
    instance_norm,
    embedding_of_bounded_norm,
)


@pytest.mark.parametrize("body", named(*UNSAID_WRITES))
def test_write_that_no_schema_tells(body: Body) -> None:
    sentence = r"blocks\.0 writes in place .*an argument of the model.*call `eval\(\)`"
    assert_refused(LogDiT(body).train(), sentence)


@pytest.mark.parametrize("body", named(*UNSAID_WRITES))
def test_the_same_functions_where_they_write_nothing(body: Body) -> None:
    assert assert_cached(LogDiT(body).eval()).num_compiled == 3


def norm_without_statistics(block: BodyBlock, h: Tensor, log: Tensor) -> Tensor:
    return F.instance_norm(h) + F.batch_norm(h, None, None, training=True)


def test_norm_without_statistics() -> None:
    assert assert_cached(LogDiT(norm_without_statistics).train()).num_compiled == 3
