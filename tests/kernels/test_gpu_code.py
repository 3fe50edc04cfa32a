"""What the kernels become on a GPU, looked at without one: each launch is recorded in a trace and
compiled for the GPU, with what Triton knows of its arguments."""

import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch._higher_order_ops.triton_kernel_wrap import get_mutated_tensors, kernel_side_table
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from dit_cachegraph_kernels.block_diff import _block_diff_kernel
from dit_cachegraph_kernels.build import calls_of
from support.kernel_cases import LAUNCHERS, in_main_process, needs_triton

pytestmark = [needs_triton, in_main_process]

FLUX, WAN = (2, 4608, 3072), (1, 75600, 5120)
CAPABILITIES = (80, 90)
CPU = torch.device("cpu")
TYPES_OF_STREAMS = (torch.float32, torch.float16, torch.bfloat16)
TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.uint8: "*u8",
    torch.int64: "*i64",
}


@dataclass(frozen=True)
class Launch:
    """One launch in a trace."""

    kernel: object
    num_warps: int
    arguments: dict
    node: torch.fx.Node | None = None

    def written_tensors(self):
        """The arguments that the tracing of compilers takes for outputs."""
        indices = [self.node.kwargs[n] for n in ("kernel_idx", "constant_args_idx")]
        traced = {name: self.arguments[name] for name in self.node.kwargs["kwargs"]}
        return get_mutated_tensors(*indices, traced, {})


def launches_of(op, *arguments):
    """The launches of an op on tensors without data."""
    gm = make_fx(lambda: LAUNCHERS[op](*arguments))()
    launches = []
    for node in gm.graph.nodes:
        if "triton_kernel_wrapper" in str(node.target):
            kernel = kernel_side_table.get_kernel(node.kwargs["kernel_idx"])
            constants = kernel_side_table.get_constant_args(node.kwargs["constant_args_idx"])
            tensors = {
                name: value.meta["val"] if isinstance(value, torch.fx.Node) else value
                for name, value in node.kwargs["kwargs"].items()
            }
            (config,) = kernel.configs
            arguments_of = {**constants, **tensors}
            launches.append(Launch(kernel.fn, config.num_warps, arguments_of, node))
    assert launches
    return launches


def compile_for_gpu(launch, capability, type_of_floats="fp32"):
    """PTX, with the specialisation that Triton gives such arguments: 1 is a constant, and what 16
    divides is known to be so. Of floats it makes float32, and Inductor float64."""
    # Triton may not be installed.
    from triton.backends.compiler import GPUTarget  # noqa: PLC0415
    from triton.compiler import ASTSource, compile  # noqa: PLC0415

    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        is_known = isinstance(value, int) and not parameter.do_not_specialize
        if parameter.is_constexpr or (is_known and value == 1):
            signature[parameter.name], constants[(i,)] = "constexpr", value
            continue
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = TYPES[value.dtype]
        elif isinstance(value, float):
            signature[parameter.name] = type_of_floats
        else:
            signature[parameter.name] = "i32" if value < 2**31 else "i64"
        if isinstance(value, torch.Tensor) or (is_known and value % 16 == 0):
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, attributes)
    target = GPUTarget("cuda", capability, 32)
    return compile(source, target, options={"num_warps": launch.num_warps}).asm["ptx"]


def memory_operations(ptx):
    """How often each kind of access to memory occurs."""
    found = re.findall(r"\b((?:ld|st)\.(?:global|local)|atom|red)(\.v\d)?\S*", ptx)
    return Counter(kind + width for kind, width in found)


def streams(shape, num_streams, dtype=torch.bfloat16):
    return [torch.empty(shape, dtype=dtype) for _ in range(num_streams)]


def cases(shape):
    """(name, op, arguments, loads and stores of 16 bytes a thread in the first launch)."""
    diff = (0, None, 1, 0.0)
    yield "diff", "residual_diff", (*streams(shape, 3), *diff), 3 * 2, 0
    yield "diff by token", "residual_diff", (*streams(shape, 3), 0, None, 1, 0.1), None, 0
    yield "diff in float32", "residual_diff", (*streams(shape, 3, torch.float32), *diff), 3 * 4, 0
    yield "store", "residual_store", streams(shape, 3), 2 * 2, 2
    text = (shape[0], 512, shape[2])
    pairs = zip(streams(shape, 2), streams(text, 2), strict=True)
    yield "apply", "residual_apply", tuple(map(list, pairs)), 2 * 4, 2 * 2
    for order in (0, 1, 4):
        x, entry, *factors = streams(shape, order + 3)
        error = (x, entry, factors, [2.0] * (order + 1), 0)
        yield f"error {order}", "forecast_error", error, 2 * (order + 3), 2
        x, *factors = streams(shape, order + 2)
        yield f"update {order}", "taylor_update", (x, factors, 2.0, None), order + 1, order + 1
        yield f"apply {order}", "taylor_apply", (x, factors, 2.0, None), order + 2, 1


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("shape", [FLUX, WAN], ids=["flux", "wan"])
def test_memory_is_read_and_written_once_in_16_byte_accesses(shape, capability):
    with FakeTensorMode():
        for name, op, arguments, num_loads, num_stores in cases(shape):
            first, *_ = launches_of(op, *arguments)
            used = memory_operations(compile_for_gpu(first, capability))
            # A reduction ends in single stores of its partial sums.
            assert {"ld.global.v4"} == {k for k in used if k.startswith("ld")}, name
            assert num_loads is None or used["ld.global.v4"] == num_loads, name
            assert used["st.global.v4"] == num_stores, name


def test_nothing_is_added_up_by_atomics_or_spilled():
    with FakeTensorMode():
        for name, op, arguments, *_ in cases(FLUX):
            for launch in launches_of(op, *arguments):
                used = memory_operations(compile_for_gpu(launch, 90))
                assert not [kind for kind in used if "global" not in kind], name


def test_a_float_of_the_host_takes_nothing_to_float64():
    with FakeTensorMode():
        for name, op, arguments, *_ in cases(FLUX):
            first, *_ = launches_of(op, *arguments)
            ptx = compile_for_gpu(first, 90, type_of_floats="fp64")
            used = set(re.findall(r"^\s*(?:@\S+ )?(\w+\S*f64\S*)", ptx, re.MULTILINE))
            assert used <= {"cvt.rn.f32.f64"}, name


def key_of(launch):
    """What Triton tells kernels apart by."""
    found = []
    for parameter in launch.kernel.params:
        value = launch.arguments[parameter.name]
        if isinstance(value, torch.Tensor):
            found.append(value.dtype)
        elif parameter.is_constexpr:
            found.append(value)
        elif isinstance(value, int) and not parameter.do_not_specialize:
            found.append((value == 1, value % 16 == 0, value < 2**31))
    return launch.kernel.__name__, launch.num_warps, *found


def calls_by_a_driver(shape, dtype, batch_dim):
    """(op, arguments) on streams of these sizes, whatever rule and predictor."""
    hidden, entry, *factors = streams(shape, 7, dtype)
    nothing = hidden.new_empty(()).expand(hidden.shape)
    yield "residual_diff", (hidden, nothing, entry, batch_dim, None, 1, 0.0)
    for num in range(1, 6):
        yield "taylor_apply", (hidden, factors[:num], 0.0, [2.0] * num)
        yield "forecast_error", (hidden, entry, factors[:num], [2.0] * num, batch_dim)
        yield "forecast_error", (hidden, None, factors[:num], [2.0] * num, batch_dim)


@pytest.mark.parametrize("dtype", TYPES_OF_STREAMS, ids=str)
@pytest.mark.parametrize(
    ("shapes", "batch_dim"),
    [
        ([FLUX, (1, 4096, 3072), (1, 4609, 3072), (8, 1023, 3072)], 0),
        ([WAN, (2, 32760, 5120)], 0),
        ([(4608, 3072), (4609, 3072)], None),
        ([(4096, 2, 1152), (4096, 1, 1152), (513, 8, 1152)], 1),
    ],
    ids=["flux", "wan", "folded", "tokens first"],
)
def test_all_that_a_driver_calls_is_built_before(shapes, batch_dim, dtype):
    with FakeTensorMode():
        built = set()
        for op, arguments in calls_of(dtype, CPU, shapes[0][-1], batch_dim):
            if op != "block_diff":  # It is opaque to traces.
                built |= {key_of(launch) for launch in launches_of(op, *arguments)}
        for shape in shapes:
            for op, arguments in calls_by_a_driver(shape, dtype, batch_dim):
                for launch in launches_of(op, *arguments):
                    assert key_of(launch) in built, (shape, op)


def test_another_width_or_dtype_would_be_seen():
    with FakeTensorMode():
        keys = [
            {
                key_of(launch)
                for op, arguments in calls_of(dtype, CPU, width, 0)
                if op == "taylor_apply"
                for launch in launches_of(op, *arguments)
            }
            for dtype, width in ((torch.bfloat16, 3072), (torch.float32, 3072), (torch.bfloat16, 9))
        ]
        assert not keys[0] & keys[1] and not keys[0] & keys[2]


class Sm90:
    """Says which GPU to compile for, in place of a driver that would look for one."""

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget  # noqa: PLC0415

        return GPUTarget("cuda", 90, 32)


def check_written_tensors():
    from triton.runtime import driver  # noqa: PLC0415

    driver.set_active(Sm90())
    written = {
        "residual_diff": {"partials_ptr"},
        "residual_store": {"out_ptr"},
        "residual_apply": {"out_ptr_0", "out_ptr_1"},
        "taylor_apply": {"out_ptr"},
        "forecast_error": {"out_ptr", "partials_ptr"},
    }
    with FakeTensorMode():
        for name, op, arguments, *_ in cases(FLUX):
            first, *_ = launches_of(op, *arguments)
            wanted = written.get(op) or {f"d{i}_ptr" for i in range(len(arguments[1]))}
            assert set(first.written_tensors()) == wanted, name
        (launch,) = launches_of("residual_apply", *([x] for x in streams(FLUX, 2)))
        assert set(launch.written_tensors()) == {"out_ptr_0"}


def test_a_compiler_sees_what_a_kernel_writes():
    # It would copy each other tensor, and write it back. A driver can't be taken back, so this
    # runs in a process of its own.
    folder = Path(__file__).parent
    code = "import sys; sys.path[:0] = {!r}; import test_gpu_code as t; t.check_written_tensors()"
    folders = [str(folder), str(folder.parent)]
    done = subprocess.run(
        [sys.executable, "-c", code.format(folders)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


DEGENERATE_SHAPES = [(1, 1, 1), (1, 1, 8), (1, 7, 1), (3, 1, 5), (1, 300, 384), (2, 7, 5)]


@pytest.mark.parametrize("shape", DEGENERATE_SHAPES, ids=str)
def test_sizes_and_strides_of_1_compile(shape):
    # Triton makes a constant of an argument that is 1, with which not everything can be done.
    with FakeTensorMode():
        for _, op, arguments, *_ in cases(shape):
            for launch in launches_of(op, *arguments):
                assert compile_for_gpu(launch, 90)
        x, y, z = (t.transpose(1, 2) for t in streams(shape, 3))
        mask = torch.empty(x.shape[:-1], dtype=torch.bool)
        for threshold in (0.0, 0.5):
            for launch in launches_of("residual_diff", x, y, z, None, mask, 1, threshold):
                assert compile_for_gpu(launch, 90)


def test_padded_rows_are_read_in_16_byte_accesses_too():
    with FakeTensorMode():
        joint = [x.narrow(1, 512, 4096) for x in streams(FLUX, 3)]
        chunks = [x.narrow(2, 3072, 3072) for x in streams((2, 4608, 3 * 3072), 3)]
        for given in (joint, chunks):
            (launch, _) = launches_of("residual_diff", *given, 0, None, 1, 0.0)
            assert set(memory_operations(compile_for_gpu(launch, 90))) == {
                "ld.global.v4",
                "st.global",
            }


@pytest.mark.parametrize("unit", [16, 1])
def test_blocks_behind_a_table_are_read_in_16_byte_accesses(unit):
    dtype = torch.bfloat16
    arguments = {
        "table_ptr": torch.empty(2, 10, dtype=torch.int64),
        "inputs_ptr": torch.empty(1, dtype=dtype),
        "cached_ptr": torch.empty(1, dtype=dtype),
        "partials_ptr": torch.empty(1),
        **{"num_samples": 2, "num_rows": 1, "num_inner": 1, "num_cols": 4608 * 3072},
        **{"num_chunks": 864, "num_col_chunks": 864, "NUM_TILES": 4},
        **{"UNIT": unit, "ARE_COLS_DENSE": True, "BLOCK_ROWS": 1, "BLOCK_COLS": 4096},
    }
    used = memory_operations(compile_for_gpu(Launch(_block_diff_kernel, 8, arguments), 90))
    assert used["ld.global.v4"] == (4 if unit == 16 else 0)


def test_an_atomic_or_a_spill_would_be_seen():
    lines = ("atom.global.add.f32 %f1", "ld.local.b32 %r1", "ld.global.v4.b32 {%r1}", "red.add.u32")
    ptx = ";\n".join([*lines, "st.global.b32 %r1"])
    assert memory_operations(ptx) == {
        "atom": 1,
        "ld.local": 1,
        "ld.global.v4": 1,
        "red": 1,
        "st.global": 1,
    }


@pytest.mark.parametrize("op", ["residual_diff", "residual_store", "taylor_update", "taylor_apply"])
def test_a_launch_is_traced_for_any_number_of_tokens(op):
    def launch(x, y, z):
        given = {
            "residual_diff": (x, y, z, 0, None, 1, 0.0),
            "residual_store": (x, y, z),
            "taylor_update": (x, [y, z], 2.0, None),
            "taylor_apply": (x, [y, z], 2.0, None),
        }
        return LAUNCHERS[op](*given[op])

    tensors = [torch.empty(2, 41, 384) for _ in range(3)]
    gm = make_fx(launch, tracing_mode="symbolic")(*tensors)
    assert not re.findall(rf"\b(?:41|{41 * 384}|{2 * 41 * 384})\b", gm.code)
    assert not [guard for guard in gm.shape_env.guards if guard.expr.func.__name__ == "Equality"]
