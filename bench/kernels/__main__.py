"""Bandwidth of the cache path's kernels, beside a device copy of as many bytes.

    python -m bench.kernels --out DIR                  the default sizes; under 8 minutes on a GPU
    python -m bench.kernels --models flux --ops residual_diff --batches 1,2,8 --dtypes bfloat16

On a GPU the ops are Triton kernels, on a CPU what Inductor makes of their plain form, at smaller
sizes and in CPU time with one thread. Each form is checked against float64 before it is timed.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

import dit_cachegraph_kernels
from bench.common.arguments import some_of
from bench.common.machine import Machine, this_machine
from bench.kernels.cases import (
    DTYPES,
    MAX_ORDER,
    MODELS,
    OPS,
    SMALLER_MODELS,
    Case,
    Selection,
    Sizes,
    cases_of,
)
from bench.kernels.check import errors_of
from bench.kernels.device import Device, device_of
from bench.kernels.forms import forms_of
from bench.kernels.plot import plot
from bench.kernels.results import CaseResult, case_result, progress, results_table, to_json
from bench.kernels.timing import make_sets, time_forms


@dataclass(frozen=True, slots=True)
class Arguments:
    """What to measure, and where the files go."""

    selection: Selection
    device: torch.device
    models: Mapping[str, Sizes]
    num_rounds: int
    out: Path | None


def parse_arguments(arguments: Sequence[str]) -> Arguments:
    """The command line; exits with a message where it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.kernels", description=_title())
    orders = tuple(str(order) for order in range(MAX_ORDER + 1))
    parser.add_argument("--ops", type=some_of(OPS), default=OPS)
    parser.add_argument("--models", type=some_of(tuple(MODELS)), default=())
    parser.add_argument("--batches", type=_counts, default=(), help="1,2,8")
    parser.add_argument("--dtypes", type=some_of(tuple(DTYPES)), default=())
    parser.add_argument("--orders", type=some_of(orders), default=(), help="of Taylor series")
    parser.add_argument("--device", type=torch.device, default=None, help="cuda if there is one")
    parser.add_argument("--full-size", action="store_true", help="the GPU's sizes on a CPU too")
    parser.add_argument("--rounds", type=int, default=None, help="20, on a CPU 5")
    parser.add_argument("--out", type=Path, default=None, metavar="DIR", help="table, JSON, plot")
    parsed = parser.parse_args(arguments)
    device = parsed.device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    is_cpu = device.type == "cpu"
    num_rounds = parsed.rounds if parsed.rounds is not None else 5 if is_cpu else 20
    if num_rounds < 1:
        parser.error("--rounds is a count")
    models = SMALLER_MODELS if is_cpu and not parsed.full_size else MODELS
    if not set(parsed.models) <= set(models):
        parser.error(f"a CPU has {', '.join(models)}, and the others with --full-size")
    chosen = (parsed.ops, parsed.models, parsed.batches, parsed.dtypes)
    selection = Selection(*chosen, tuple(int(order) for order in parsed.orders))
    return Arguments(selection, device, models, num_rounds, parsed.out)


def _title() -> str:
    return (__doc__ or "").partition("\n")[0]


def _counts(text: str) -> tuple[int, ...]:
    counts = tuple(int(number) for number in text.split(","))
    if any(count < 1 for count in counts):
        raise argparse.ArgumentTypeError("batches are counts")
    return counts


def measure_case(
    case: Case, device: torch.device, num_rounds: int, inner: str = "inductor"
) -> CaseResult:
    """Check all forms of a case, then time them.

    Raises:
        RuntimeError: a form gives a wrong result.
    """
    torch.compiler.reset()
    forms, sets = forms_of(case, device, inner), make_sets(case, device)
    errors = errors_of(case, forms, sets[0])
    return case_result(case, time_forms(case, forms, sets, num_rounds), errors)


def measure(arguments: Arguments) -> list[CaseResult]:
    """Everything that was asked for, with a line for each case as soon as it is done."""
    results = []
    for case in cases_of(arguments.selection, arguments.models):
        results.append(measure_case(case, arguments.device, arguments.num_rounds))
        print(progress(results[-1]), flush=True)
        if arguments.device.type == "cuda":
            torch.cuda.empty_cache()
    return results


def write(results: Sequence[CaseResult], machine: Machine, device: Device, out: Path) -> None:
    """`kernels.txt`, `kernels.json` and, where matplotlib is installed, `kernels.png`."""
    out.mkdir(parents=True, exist_ok=True)
    text = f"{machine}\n{device}\n\n{results_table(results)}\n"
    (out / "kernels.txt").write_text(text)
    facts = {"machine": asdict(machine), "device": asdict(device)}
    data = {**facts, "cases": [to_json(result) for result in results]}
    (out / "kernels.json").write_text(json.dumps(data, indent=2) + "\n")
    if find_spec("matplotlib") is None:
        print("no plot: matplotlib is not installed")
    else:
        plot(results, f"{machine}\n{device}", out / "kernels.png")


def main(arguments: Sequence[str]) -> None:
    parsed = parse_arguments(arguments)
    torch.set_num_threads(1)
    machine, device = this_machine(), device_of(parsed.device)
    print(f"{machine}\n{device}\n")
    key = dit_cachegraph_kernels.source_key()
    # The module gets this function while it is imported.
    with torch.no_grad(), torch.compiler.config.patch(cache_key_tag=key):  # type: ignore[attr-defined]
        results = measure(parsed)
    print(f"\n{results_table(results)}")
    if parsed.out is not None:
        write(results, machine, device, parsed.out)


if __name__ == "__main__":
    main(sys.argv[1:])
