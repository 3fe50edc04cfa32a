"""A second process finds all that the first one compiled: each graph is one that AOTAutograd's
cache keeps, the diff's among them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
CALLS = """
import json
import torch
from torch._dynamo.utils import counters
from support.toy_dits import GatedBlock, ReadingDiT, toy_inputs

torch.manual_seed(0)
options = {"Fn_compute_blocks": 1, "max_warmup_steps": 0}
model = ReadingDiT([GatedBlock() for _ in range(3)]).eval()
compiled = torch.compile(model, backend="cachedit", options=options)
with torch.no_grad():
    compiled(**toy_inputs(90.0))
print(json.dumps(counters["aot_autograd"]))
"""


@pytest.mark.slow
def test_every_graph_is_found_again(tmp_path):
    paths = [str(TESTS), str(TESTS.parent), str(TESTS.parent / "kernels")]
    own = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(paths)}
    counted = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", CALLS],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, **own},
        )
        counted.append(json.loads(done.stdout.splitlines()[-1]))
    first, second = counted
    # The prologue, one function for all blocks, the epilogue, and the diff.
    assert first == {"total": 4, "ok": 4, "autograd_cache_miss": 4, "autograd_cache_saved": 4}
    assert second == {"total": 4, "ok": 4, "autograd_cache_hit": 4}
