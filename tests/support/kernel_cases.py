"""What the tests of the kernels share: in which form an op runs, tensors of any layout and content,
and float64 formulas to compare with, each with a bound on what float32 may get wrong."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

import dit_cachegraph_kernels.graph_ops  # noqa: F401  # registers OPS
from dit_cachegraph_kernels.block_diff import launch_block_diff
from dit_cachegraph_kernels.forecast_error import launch_forecast_error
from dit_cachegraph_kernels.residual_apply import launch_residual_apply
from dit_cachegraph_kernels.residual_diff import launch_residual_diff
from dit_cachegraph_kernels.residual_store import launch_residual_store
from dit_cachegraph_kernels.taylor_apply import launch_taylor_apply
from dit_cachegraph_kernels.taylor_update import launch_taylor_update

ROOT = Path(__file__).resolve().parents[2]
IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
OPS = torch.ops.dit_cachegraph
LAUNCHERS = {
    "residual_diff": launch_residual_diff,
    "residual_store": launch_residual_store,
    "residual_apply": launch_residual_apply,
    "taylor_update": launch_taylor_update,
    "taylor_apply": launch_taylor_apply,
    "forecast_error": launch_forecast_error,
    "block_diff": launch_block_diff,
}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
EPS32 = torch.finfo(torch.float32).eps


class Form:
    """Calls an op in one form, on the device of that form."""

    def __init__(self, name):
        self.name = name
        self.device = "cuda" if name == "cuda" else "cpu"

    def __call__(self, op, *arguments):
        run = LAUNCHERS[op] if self.name == "kernel" else getattr(OPS, op).default
        return run(*arguments)


# "kernel" calls what launches the Triton kernel, on tensors of the CPU: that works in Triton's
# interpreter alone, where the same tests run once more, in a process of their own.
FORMS = ("kernel",) if IS_INTERPRETED else ("plain", "cuda")
in_each_form = pytest.mark.parametrize(
    "run",
    [pytest.param(Form(f), id=f, marks=pytest.mark.gpu if f == "cuda" else ()) for f in FORMS],
)
# An interpreted kernel takes a tenth of a second for each of its programs.
NUM_EXAMPLES = 12 if IS_INTERPRETED else 60

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
in_main_process = pytest.mark.skipif(IS_INTERPRETED, reason="says nothing of the kernels")


class Form:
    """Calls an op in one form, on the device of that form."""

    def __init__(self, name):
        self.name = name
        self.device = "cuda" if name == "cuda" else "cpu"

    def __call__(self, op, *arguments):
        run = LAUNCHERS[op] if self.name == "kernel" else OPS[op].default
        return run(*arguments)


@pytest.fixture(params=FORMS)
def form(request):
    return Form(request.param)


def interpreter_fails():
    """Why Triton's interpreter can't run, or None."""
    if find_spec("triton") is None:
        return "triton is not installed"
    code = "import triton, numpy as n; print(triton.__version__, n.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    triton, numpy = ([int(x) for x in v.split(".")[:2]] for v in done.stdout.split())
    if triton < [3, 7] and numpy >= [2, 4]:
        return "the interpreter of triton before 3.7 doesn't run with numpy 2.4 or later"
    return None


def run_interpreted(file):
    """Run the tests of a file on its kernels, in Triton's interpreter."""
    reason = interpreter_fails()
    if reason is not None:
        pytest.skip(reason)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-n", "0"]
    done = subprocess.run(
        [*command, "-m", "not gpu", str(file)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout


# Tensors

SPECIAL_VALUES = (float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-40, 6e-8)


@st.composite
def layouts(draw, shape):
    """(how a tensor of this shape lies in memory) as a function of contiguous values."""
    kind = draw(st.sampled_from(("contiguous", "permuted", "padded", "stepped", "expanded")))
    dims = range(len(shape))
    order = draw(st.permutations(dims))
    dim = draw(st.sampled_from(dims))

    def lay_out(x):
        if kind == "permuted":
            back = [order.index(d) for d in dims]
            return x.permute(order).contiguous().permute(back)
        if kind == "expanded":
            return x.narrow(dim, 0, min(1, x.shape[dim])).expand(x.shape)
        if kind == "contiguous":
            return x
        step = 2 if kind == "stepped" else 1
        wide = x.new_full([step * n + 3 for n in x.shape], float("nan"))
        view = wide[tuple(slice(1, 1 + step * n, step) for n in x.shape)]
        view.copy_(x)
        return view

    return lay_out


@st.composite
def values(draw, shape, dtype, has_specials=True):
    """A contiguous tensor of normal numbers, with some others among them."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = torch.randn(shape, generator=generator) * draw(st.sampled_from((1e-3, 1.0, 1e3)))
    chosen = draw(st.lists(st.sampled_from(SPECIAL_VALUES), max_size=3)) if has_specials else []
    for value in chosen:
        if x.numel():
            x.view(-1)[draw(st.integers(0, x.numel() - 1))] = value
    return x.to(dtype)


@st.composite
def tensors(draw, shape, dtype=None, has_specials=True):
    """A tensor of any layout, dtype and content."""
    dtype = draw(st.sampled_from(DTYPES)) if dtype is None else dtype
    return draw(layouts(shape))(draw(values(shape, dtype, has_specials)))


def shapes(min_dims=1, max_dims=5):
    """Small shapes, also empty ones, some with a row longer than a block of columns."""
    small = st.lists(st.integers(1, 5), min_size=min_dims, max_size=max_dims)
    empty = st.lists(st.integers(0, 3), min_size=min_dims, max_size=max_dims)
    long = st.lists(st.integers(1, 3), min_size=max(min_dims - 1, 0), max_size=2).flatmap(
        lambda outer: st.sampled_from((127, 384, 1100)).map(lambda n: [*outer, n])
    )
    return st.one_of(small, small, long, empty).map(tuple)


def fresh(*shape, dtype=torch.float32, device="cpu", seed=0):
    """Normal numbers in a contiguous tensor."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(device, dtype)


# Comparing


def assert_within(got: Tensor, wanted: Tensor, error: Tensor):
    """`got` is `wanted`, which is float64, rounded to the dtype of `got`, but for `error`: what the
    float32 arithmetic before that may get wrong. Infinities and NaN are where they belong."""
    assert got.shape == wanted.shape
    info = torch.finfo(got.dtype)
    rounded, got = wanted.cpu().to(got.dtype).double(), got.cpu().double()
    smallest = info.smallest_normal * info.eps
    if IS_INTERPRETED and info.dtype == "bfloat16":
        # Triton's interpreter, and no GPU, gets denormals wrong when it converts to bfloat16.
        smallest = info.smallest_normal
    bound = rounded.abs() * info.eps + error.cpu() + smallest
    is_same = (got == rounded) | (got.isnan() & rounded.isnan())
    is_near = (got - rounded).abs() <= torch.where(rounded.isfinite(), bound, 0.0)
    assert (is_same | is_near).all(), f"got {got}, wanted {rounded}"
