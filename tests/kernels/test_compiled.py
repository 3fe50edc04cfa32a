"""The ops inside of compiled functions: traced through, fused, for any number of tokens."""

import os
import re
import subprocess
import sys

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.utils import run_and_get_code

from dit_cachegraph_kernels import source_key
from support.kernel_cases import OPS, ROOT, fresh, in_main_process, needs_triton

pytestmark = in_main_process


@pytest.fixture(autouse=True)
def _nothing_compiled_of_other_sources():
    with torch.compiler.config.patch(cache_key_tag=source_key()):
        yield


# A number that nothing else in generated code has.
NUM_CHANNELS = 1088
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def streams(num_tokens, num_streams, device="cpu"):
    return [
        fresh(2, num_tokens, NUM_CHANNELS, device=device, seed=seed) for seed in range(num_streams)
    ]


def diff(num_tokens, device):
    return streams(num_tokens, 3, device)


def run_diff(hidden, hidden_in, previous):
    return OPS.residual_diff(hidden.sin(), hidden_in, previous) * 2


def run_store(hidden, hidden_in, out):
    OPS.residual_store(hidden.sin(), hidden_in, out)
    return out + 1


def run_apply(hidden_in, residual, other):
    first, second = OPS.residual_apply([hidden_in.sin(), other], [residual, residual])
    return first * second


def run_taylor_update(value, old, other):
    OPS.taylor_update(value.sin(), [old, other], 2.0)
    return old + other


def run_taylor_apply(hidden_in, first, second):
    return OPS.taylor_apply(hidden_in.sin(), [first, second], 2.0) + 1


def run_block_diff(first, second, cached):
    return OPS.block_diff([first.sin(), second], [cached, cached]) * 2


OP_USERS = (
    run_diff, run_store, run_apply, run_taylor_update, run_taylor_apply, run_block_diff
)  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("user", OP_USERS, ids=lambda f: f.__name__.removeprefix("run_"))
@torch.no_grad()
def test_one_graph_without_breaks_for_any_number_of_tokens(user, device):
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(user, fullgraph=True, dynamic=True, backend=counter)
    for num_tokens in (6, 9, 300):
        given = streams(num_tokens, 3, device)
        wanted = user(*(x.clone() for x in given))
        torch.testing.assert_close(compiled(*given), wanted, rtol=2e-5, atol=2e-5)
    assert counter.frame_count == 1
    assert [
        n.target for g in counter.graphs for n in g.graph.nodes if "dit_cachegraph" in str(n.target)
    ]


def loops_over_a_stream(code, num_tokens=300):
    """Loops over the channels of a token, or over everything at once."""
    bounds = re.findall(r"for\(int64_t \w+=[^;]*; \w+<static_cast<int64_t>\((\d+)L\)", code)
    return [n for n in map(int, bounds) if n in (NUM_CHANNELS, 2 * num_tokens * NUM_CHANNELS)]


@pytest.mark.parametrize("user", OP_USERS, ids=lambda f: f.__name__.removeprefix("run_"))
@torch.no_grad()
def test_each_op_is_fused_into_one_loop_with_what_is_around_it(user):
    _, (code,) = run_and_get_code(torch.compile(user, dynamic=False), *streams(300, 3))
    assert code.count("async_compile.cpp") == 1
    assert len(loops_over_a_stream(code)) == 1


def observe(hidden, hidden_in, previous, timestep, batch_dim):
    """All that a decision reads, in one vector."""
    sums = OPS.residual_diff(hidden, hidden_in, previous, batch_dim)
    return torch.cat([timestep.amax().reshape(1), timestep.sum().reshape(1), sums.reshape(-1)])


@pytest.mark.parametrize("batch_dim", [0, 1, None])
@pytest.mark.parametrize("is_dynamic", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_decision_is_one_loop_over_the_hidden_state(dtype, is_dynamic, batch_dim):
    given = [x.to(dtype) for x in streams(300, 3)]
    if batch_dim == 1:
        given = [x.transpose(0, 1).contiguous() for x in given]
    if is_dynamic:
        for x in given:
            torch._dynamo.mark_dynamic(x, 0 if batch_dim == 1 else 1)
    arguments = (*given, torch.tensor([3.0]), batch_dim)
    got, (code,) = run_and_get_code(torch.compile(observe, fullgraph=True), *arguments)
    assert code.count("async_compile.cpp") == 1
    assert len(loops_over_a_stream(code)) == 1
    # Nothing of the size of a stream is written.
    assert f"{NUM_CHANNELS}" not in "".join(re.findall(r"= empty_strided\w*\(.*", code))
    torch.testing.assert_close(got, observe(*arguments), rtol=1e-5, atol=0)


@torch.no_grad()
def test_loops_would_be_counted():
    def separate(hidden, hidden_in, previous):
        r = hidden - hidden_in
        return (r - previous).abs().sum(), previous.abs().softmax(-1).sum()

    _, (code,) = run_and_get_code(torch.compile(separate, dynamic=False), *streams(300, 3))
    assert len(loops_over_a_stream(code)) > 1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@torch.no_grad()
def test_compiled_code_keeps_numbers_that_are_not_finite(device, value):
    given = streams(6, 3, device)
    given[1][1, 2, 3] = value
    compiled = torch.compile(lambda h, i, p: OPS.residual_diff(h, i, p, 0, None, 1, 0.5))
    moved, _ = compiled(*given).unbind(1)
    assert moved[0].isfinite() and not moved[1].isfinite()


@torch.no_grad()
def test_compiled_code_gives_the_same_bits_in_every_run():
    given = streams(300, 3)
    compiled = torch.compile(OPS.residual_diff.default, dynamic=False)
    first = compiled(*given)
    assert all(torch.equal(compiled(*given), first) for _ in range(99))


@torch.no_grad()
def test_each_number_is_compiled_for_itself():
    compiled = torch.compile(OPS.taylor_apply.default, fullgraph=True)
    hidden_in, *factors = (fresh(2, 3, 8, seed=s) for s in range(4))
    for k in (1.0, 2.0, 5.5):
        wanted = OPS.taylor_apply(hidden_in, factors, k)
        torch.testing.assert_close(compiled(hidden_in, factors, k), wanted)


@pytest.mark.slow
@needs_triton
def test_the_same_without_triton():
    code = "import sys; sys.modules['triton'] = None; import pytest; sys.exit(pytest.main({!r}))"
    which = "any_number or is_one_loop or not_finite"
    arguments = ["-q", "-x", "-p", "no:cacheprovider", "-n", "0", "-m", "not gpu", "-k", which]
    done = subprocess.run(
        [sys.executable, "-c", code.format([*arguments, __file__])],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=dict(os.environ),
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(OP_USERS) + 12 + 2} passed" in done.stdout
