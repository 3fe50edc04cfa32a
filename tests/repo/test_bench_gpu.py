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
from bench.gpu.parts import Part
from bench.gpu.profiled import profiled
from bench.gpu.run import NEEDS_GPU, Run, worst_error

ROOT = Path(__file__).resolve().parents[2]
HERE = Run(torch.device("cpu"), ON_CPU, inner="eager")


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def test_decisions_in_each_mode():
    found = dict(right.decisions(HERE))
    assert list(found) == list(MODES)
    for row in found.values():
        decisions = row["decisions"]["cpu"]
        assert len(decisions) == NUM_STEPS
        assert set(decisions) == {".", "H"}
    static = found["static mask, named"]["decisions"]["cpu"]
    assert static == "".join("." if computes else "H" for computes in MASK)


def test_two_threads_draw_as_one():
    assert dict(right.two_threads(HERE))["errors"] == pytest.approx([0, 0], abs=1e-6)


def test_outputs_that_differ_are_refused(monkeypatch):
    monkeypatch.setattr(right, "worst_error", lambda own, wanted: 0.5)
    part = right.two_threads(HERE)
    assert next(part) == ("errors", [0.5, 0.5])
    with pytest.raises(RuntimeError, match=r"two images at once are off by \[0.5, 0.5\]"):
        next(part)


def test_a_step_that_is_not_a_number_is_refused(monkeypatch):
    good, broken = torch.ones(3), torch.full((3,), torch.nan)
    assert math.isnan(worst_error([good, broken], [good, good]))
    monkeypatch.setattr(right, "worst_error", lambda own, wanted: math.nan)
    with pytest.raises(RuntimeError, match=r"are off by \[nan, nan\]"):
        dict(right.two_threads(HERE))


def test_full_flux_times_each_kind_and_profiles_it():
    found = dict(quick.full_flux(HERE))
    assert list(found["times"]) == ["plain", "floor", "computed", "hit"]
    assert found["times"]["plain"]["to_base"]["median"] == 1.0
    assert list(found["profiles"]) == list(found["times to floor"]) == ["floor", "computed", "hit"]
    assert found["error to eager"] < 1e-2
    json.dumps(found)


def test_a_hit_that_is_none_is_not_timed(monkeypatch):
    monkeypatch.setattr(quick, "ALWAYS_HITS", quick.NEVER_HITS)
    with pytest.raises(RuntimeError, match="what should be a hit step isn't one: diff "):
        dict(quick.full_flux(HERE))


def test_what_needs_a_gpu_says_so():
    assert list(right.waits(HERE)) == list(quick.cuda_graphs(HERE)) == [NEEDS_GPU]
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
    assert "failed" not in written
    (tmp_path / "torch.py").write_text("raise ImportError('no torch')")
    assert gpu.main(command) == 1
    assert json.loads((out / "waits.json").read_text())["failed"].endswith("no torch\n")


def test_a_part_that_fails_leaves_what_it_has_found(tmp_path, monkeypatch, capsys):
    def finds_one(run):
        yield "first", 1
        raise RuntimeError("the second is wrong")

    def in_this_process(command, max_seconds):
        with pytest.raises(RuntimeError) as raised:
            gpu.main(command[3:])
        return str(raised.value)

    monkeypatch.setattr(gpu, "PARTS", {"halves": Part(finds_one, 1)})
    monkeypatch.setattr(gpu, "_why_failed", in_this_process)
    command = ["--out", str(tmp_path), "--device", "cpu", "--inner", "eager", "--parts", "halves"]
    assert gpu.main(command) == 1
    written = json.loads((tmp_path / "halves.json").read_text())
    assert (written["first"], written["failed"]) == (1, "the second is wrong")
    assert list(tmp_path.glob("*.unfinished")) == []


def test_what_takes_too_long_is_given_up():
    sleeping = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert gpu._why_failed(sleeping, 1) == "it took more than 1 s"
    assert gpu._why_failed([sys.executable, "-c", ""], 60) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_to_do(tmp_path, capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--out", str(tmp_path)])
    assert "--device cpu shows that the command works" in capsys.readouterr().err
