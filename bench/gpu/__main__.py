"""All that only a GPU can tell, in one command of under nine minutes.

    python -m bench.gpu --out bench/results/gpu           each part a process, a JSON as it ends
    python -m bench.gpu --out DIR --parts decisions,waits
    python -m bench.gpu --out DIR --device cpu --inner eager    that it works, on little models

It needs neither diffusers nor the network. A part that fails, or takes too long, is told and leaves
what it has found until then, and the others run.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from bench.common.arguments import some_of
from bench.common.machine import this_machine
from bench.common.table import table
from bench.common.whole_file import write_whole
from bench.gpu.image import ON_CPU, ON_GPU
from bench.gpu.parts import PARTS, Run

SLOWER_ON_CPU = 10
MAX_TOLD = 2000  # characters of what a part that failed has said


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=_title())
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--parts", type=some_of(tuple(PARTS)), default=tuple(PARTS), help=",".join(PARTS)
    )
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--inner", choices=("inductor", "eager"), default="inductor")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    if parsed.device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --device cpu shows that the command works")
    parsed.out.mkdir(parents=True, exist_ok=True)
    if parsed.here:
        _run_here(parsed.parts[0], parsed)
        return 0
    outcomes = [_run_apart(name, arguments, parsed) for name in parsed.parts]
    text = f"{this_machine()}\n\n{table([['part', 'seconds', 'outcome'], *outcomes])}\n"
    (parsed.out / "gpu.txt").write_text(text)
    print(f"\n{text}", end="")
    return 0 if all(outcome == "done" for *_, outcome in outcomes) else 1


def _title() -> str:
    return (__doc__ or "").partition("\n")[0]


def _run_apart(name: str, arguments: Sequence[str], parsed: argparse.Namespace) -> list[str]:
    """One part in a process of its own, since an error of the device ends what runs in it. Returns
    a row of the table."""
    command = [sys.executable, "-m", "bench.gpu", *arguments, "--parts", name, "--here"]
    path, start = parsed.out / f"{name}.json", time.perf_counter()
    limit = PARTS[name].max_seconds * (1 if parsed.device.type == "cuda" else SLOWER_ON_CPU)
    path.unlink(missing_ok=True)
    failed = _why_failed(command, limit)
    found = json.loads(path.read_text()) if path.exists() else {}
    if failed is not None:
        found["failed"] = failed
        _write(path, found)
    seconds = time.perf_counter() - start
    outcome = str(found.get("failed") or found.get("not run") or "done")
    print(f"{name}: {outcome} ({seconds:.0f} s)", flush=True)
    return [name, f"{seconds:.0f}", outcome.strip().splitlines()[-1]]


def _why_failed(command: Sequence[str], max_seconds: int) -> str | None:
    try:
        done = subprocess.run(
            command, check=False, timeout=max_seconds, stderr=subprocess.PIPE, text=True
        )
    except subprocess.TimeoutExpired:
        return f"it took more than {max_seconds} s"
    return done.stderr[-MAX_TOLD:] if done.returncode != 0 else None


def _run_here(name: str, parsed: argparse.Namespace) -> None:
    """One part; what it has found so far is written whenever there is more of it."""
    is_gpu = parsed.device.type == "cuda"
    run = Run(parsed.device, ON_GPU if is_gpu else ON_CPU, parsed.inner)
    command = f"python -m bench.gpu --parts {name}"
    found: dict[str, object] = {"machine": asdict(this_machine()), "command": command}
    with torch.no_grad():
        for what, value in PARTS[name].run(run):
            found[what] = value
            _write(parsed.out / f"{name}.json", found)


def _write(path: Path, found: object) -> None:
    write_whole(json.dumps(found, indent=2, default=str) + "\n", path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
