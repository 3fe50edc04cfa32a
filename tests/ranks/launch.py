"""Runs the cases of `worker.py` on several ranks, and brings back what each saw."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

# Before torch 2.13 Dynamo breaks as the output is gathered, after all blocks.
BREAKS_AT_GATHER = torch.torch_version.TorchVersion(torch.__version__) < "2.13"
GATHERED = "_maybe_view_chunk_cat"
WORKER = Path(__file__).with_name("worker.py")
SECONDS = 240
Seen = dict[str, object]


def run_ranks(
    cases: Sequence[Seen], folder: Path, num_ranks: int = 2, seconds: int = SECONDS
) -> list[list[Seen]]:
    """What each rank saw of each case, `[case][rank]`. All ranks are gone when this returns, also
    where they wait for each other."""
    (folder / "cases.json").write_text(json.dumps(cases))
    ranks = f"--nproc-per-node={num_ranks}"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", ranks]
    torchrun = subprocess.Popen(
        [*command, str(WORKER), str(folder)], stderr=subprocess.PIPE, text=True
    )
    try:
        _, said = torchrun.communicate(timeout=seconds)
    finally:
        torchrun.terminate()  # It ends its ranks, which SIGKILL would leave behind.
        torchrun.communicate()
    assert torchrun.returncode == 0, said[-6000:]
    seen = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(num_ranks)]
    return [list(of_case) for of_case in zip(*seen, strict=True)]


def unexpected(refusals: Sequence[str]) -> list[str]:
    """Those that aren't this torch's own break."""
    return [reason for reason in refusals if not BREAKS_AT_GATHER or GATHERED not in reason]
