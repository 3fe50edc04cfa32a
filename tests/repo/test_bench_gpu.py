"""`bench.gpu` on the CPU: what it compares, what it refuses, and that a part that fails is told."""

import json
import math
import os
import sys
from pathlib import Path

import pytest
import torch

# The bench is no installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.gpu import __main__ as gpu
from bench.gpu import quick, right
from bench.gpu.image import NUM_STEPS, ON_CPU
from bench.gpu.modes import MASK, MODES
from bench.gpu.profiled import profiled
from bench.gpu.run import NEEDS_GPU, Run, worst_error

ROOT = Path(__file__).resolve().parents[2]
HERE = Run(torch.device("cpu"), ON_CPU, inner="eager")


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def test_decisions_in_each_mode():
    found = right.decisions(HERE)
    assert list(found) == list(MODES)
    for row in found.values():
        assert len(row["decisions"]) == NUM_STEPS
        assert set(row["decisions"]) == {".", "H"}
    static = found["static mask, named"]["decisions"]
    assert static == "".join("." if computes else "H" for computes in MASK)


def test_two_threads_draw_as_one():
    assert right.two_threads(HERE)["errors"] == pytest.approx([0, 0], abs=1e-6)


def test_outputs_that_differ_are_refused(monkeypatch):
    monkeypatch.setattr(right, "worst_error", lambda own, wanted: 0.5)
    with pytest.raises(RuntimeError, match=r"two images at once are off by \[0.5, 0.5\]"):
        right.two_threads(HERE)


def test_a_step_that_is_not_a_number_is_refused(monkeypatch):
    good, broken = torch.ones(3), torch.full((3,), torch.nan)
    assert math.isnan(worst_error([good, broken], [good, good]))
    monkeypatch.setattr(right, "worst_error", lambda own, wanted: math.nan)
    with pytest.raises(RuntimeError, match=r"are off by \[nan, nan\]"):
        right.two_threads(HERE)


def test_full_flux_times_each_kind_and_profiles_it():
    found = quick.full_flux(HERE)
    assert list(found["times"]) == ["plain", "floor", "computed", "hit"]
    assert found["times"]["plain"]["to_base"]["median"] == 1.0
    assert list(found["profiles"]) == list(found["times"])
    json.dumps(found)


def test_what_needs_a_gpu_says_so():
    assert right.waits(HERE) == quick.cuda_graphs(HERE) == NEEDS_GPU
    assert profiled(lambda: torch.ones(2) + 1, torch.device("cpu")).num_kernels == 0


def test_a_part_in_a_process_of_its_own_which_needs_no_diffusers(tmp_path, monkeypatch, capsys):
    (tmp_path / "diffusers.py").write_text("raise ImportError('hidden')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.chdir(ROOT)
    out = tmp_path / "out"
    command = ["--out", str(out), "--device", "cpu", "--inner", "eager", "--parts", "waits"]
    assert gpu.main(command) == 1  # Not all of it has run.
    assert "there is no GPU" in (out / "gpu.txt").read_text()
    written = json.loads((out / "waits.json").read_text())
    assert written["not run"] == "there is no GPU"
    assert written["command"] == "python -m bench.gpu --parts waits"
    (tmp_path / "torch.py").write_text("raise ImportError('no torch')")
    assert gpu.main(command) == 1
    assert json.loads((out / "waits.json").read_text())["failed"].endswith("no torch\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_to_do(tmp_path, capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--out", str(tmp_path)])
    assert "--device cpu shows that the command works" in capsys.readouterr().err
