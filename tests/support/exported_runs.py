"""An exported model in a process of its own, where neither Dynamo nor diffusers can be imported."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import dit_cachegraph as dc

ROOT = Path(__file__).resolve().parents[2]
ALONE = """
import json, sys

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch._dynamo", "torch._inductor", "diffusers", "sympy"):
            raise ImportError(f"{name} is not to be imported here")

sys.meta_path.insert(0, Forbidden())
import torch
import dit_cachegraph as dc

file, given, made = sys.argv[1:]
given = torch.load(given)
model, outputs = dc.load_exported(file, given["state"]), []
for call in given["calls"]:
    if call["configure"]:
        dc.configure(model, **call["configure"])
    with dc.request(call["key"]):
        outputs.append(model(**call["arguments"]))
report = dc.summary(model)
dc.check(model)
torch.save(outputs, made)
steps = [[step.request, step.hit, step.reason.split()[0]] for step in report.steps]
print(json.dumps({"steps": steps, "text": str(report), "report": report.to_dict()}))
"""


class Call(NamedTuple):
    """A call of a request; `configure` is what the model is told before it."""

    key: str
    arguments: dict[str, object]
    configure: dict[str, object]


class Ran(NamedTuple):
    """What calls gave; of each step its request, whether it hit, and how its reason begins."""

    outputs: list[object]
    steps: list[list[object]]
    text: str
    report: dict[str, object]


def run_alone(file: Path, state: dict[str, Tensor], calls: list[Call], folder: Path) -> Ran:
    """The calls of what was exported to `file`."""
    given, made = folder / "given.pt", folder / "made.pt"
    torch.save({"state": state, "calls": [call._asdict() for call in calls]}, given)
    paths = os.pathsep.join((str(ROOT), str(ROOT / "kernels")))
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(file), str(given), str(made)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    return Ran(torch.load(made), told["steps"], told["text"], told["report"])


def run_here(model: nn.Module, calls: list[Call]) -> Ran:
    """The same calls of a compiled model."""
    outputs = []
    for call in calls:
        if call.configure:
            dc.configure(model, **call.configure)
        with torch.no_grad(), dc.request(call.key):
            outputs.append(model(**call.arguments))
    report = dc.summary(model)
    steps = [[step.request, step.hit, step.reason.split()[0]] for step in report.steps]
    return Ran(outputs, steps, str(report), report.to_dict())
