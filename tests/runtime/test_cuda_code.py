"""The CUDA code of every segment, and of the diff between them, generated without a GPU, and its
kernels built; and how many of them each stage of a step launches. What the driver launches beside:
`test_launches`, and its machine code `test_gpu_code`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from support.kernel_cases import needs_triton

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    needs_triton,
    pytest.mark.skipif(
        not torch.__version__.startswith("2.13."), reason="the numbers are those of torch 2.13"
    ),
]


def generated(model):
    """What `support.cuda_code` says of it, in a process that believes in a GPU."""
    folders = [ROOT, ROOT / "kernels", ROOT / "tests"]
    done = subprocess.run(
        [sys.executable, "-m", "support.cuda_code", model],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


OUR_KERNELS = {"_residual_diff_kernel_0", "_sum_partials_kernel_1"}


def test_of_joint_and_single_blocks():
    """Kernels of its own and calls of libraries: of 5 of the 6 blocks a hit launches none."""
    found = generated("toy")
    assert found["stages"] == [
        ["RUNS", 1, 1],
        ["PROBED", 5, 3],
        ["GUARDED", 5 + 4 * 3, 3 + 4],
        ["RUNS", 0, 1],
    ]
    assert found["diff"] == [2, 0]
    assert found["built"] == found["launched"]
    assert set(found["built"]) > OUR_KERNELS


@pytest.mark.slow
@pytest.mark.e2e
def test_of_flux():
    """A joint block has 14 products and one attention, a single one 6 and one."""
    found = generated("flux")
    assert found["stages"] == [
        ["RUNS", 9, 8],
        ["PROBED", 17, 15],
        ["GUARDED", 17 + 2 * 5, 15 + 2 * 7],
        ["RUNS", 2, 2],
    ]
    assert found["diff"] == [2, 0]
    assert found["built"] == found["launched"]
    assert set(found["built"]) > OUR_KERNELS
