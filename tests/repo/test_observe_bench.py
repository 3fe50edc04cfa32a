"""The bench of `observe` pairs hits, and says what observing adds."""

import json
import sys
from pathlib import Path

import pytest
import torch

# The bench is no installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench import observe
from bench.common.spread import Spread
from bench.observe import ObserveResult, measure
from bench.speed.flux import Depth


@pytest.mark.e2e
def test_only_one_hit_of_a_pair_is_observed(monkeypatch):
    torch.compiler.reset()
    seen = []
    monkeypatch.setattr(observe, "_nothing", seen.append)
    with torch.no_grad():
        result = measure(Depth(2, 2), 4, inner="eager")
    assert [record.step.hit for record in seen] == [True] * 4
    assert result.hit.median > 0


def result_of(added):
    spread = Spread(added, added, added)
    hit = Spread(100.0, 100.0, 100.0)
    return ObserveResult(observe.this_machine(), 5, hit, spread, Spread(0.0, 0.0, 0.0))


@pytest.mark.parametrize(("added", "code"), [(1.0, 0), (2.0, 1)])
def test_two_percent_are_too_much(tmp_path, monkeypatch, capsys, added, code):
    monkeypatch.setattr(observe, "measure", lambda *_: result_of(added))
    kept = tmp_path / "observe.json"
    assert observe.main(["--json", str(kept)]) == code
    assert f"{added:.2f}% of it" in capsys.readouterr().out
    assert json.loads(kept.read_text())["share"] == pytest.approx(added / 100)
