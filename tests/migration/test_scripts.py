"""Scripts in cache-dit's style run with only the import changed, and decide the same."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from migration.script_runs import (
    OURS,
    SCRIPTS,
    Ran,
    decisions_of_cache_dit,
    decisions_of_ours,
    relative_error,
    run_script,
)
from migration.stand_ins import NUM_STEPS

pytestmark = pytest.mark.e2e

MAX_ERROR = 1e-5
NUM_BRANCHES = {"qwen_cfg": 2, "wan22_two_transformers": 2}
COMPILES = "flux_torch_compile"
NAMES = sorted(path.stem for path in SCRIPTS.glob("*.py") if path.stem != COMPILES)

needs_cache_dit = pytest.mark.skipif(
    importlib.util.find_spec("cache_dit") is None,
    reason='cache-dit is not installed: pip install -e ".[peers]"',
)


@pytest.fixture(autouse=True, scope="module")
def fresh_dynamo():
    """Instead of the one for each test: scripts that draw with one model share its graph."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def ours():
    """What each script did with ours, run once."""
    ran: dict[str, Ran] = {}

    def run(name: str) -> Ran:
        if name not in ran:
            ran[name] = decisions_of_ours(run_script(name, OURS), NUM_BRANCHES.get(name, 1))
        return ran[name]

    return run


def test_there_are_ten():
    assert len(NAMES) + 1 >= 10
    for path in SCRIPTS.glob("*.py"):
        assert path.read_text().count("import cache_dit\n") == 1, path


@pytest.mark.parametrize("name", NAMES)
def test_ours_runs_and_caches(ours, name):
    assert all(0 < len(steps) < NUM_STEPS - 2 for steps in ours(name).hits)
    assert torch.isfinite(ours(name).output).all()


@needs_cache_dit
@pytest.mark.peers
@pytest.mark.parametrize("name", NAMES)
def test_decisions_are_those_of_cache_dit(ours, name):
    peer = decisions_of_cache_dit(run_script(name, "cache_dit"), NUM_BRANCHES.get(name, 1))
    assert ours(name).hits == peer.hits
    assert peer.num_skipped in ((), ours(name).num_skipped)
    assert relative_error(ours(name).output, peer.output) < MAX_ERROR


def test_the_scripts_decide_in_many_ways(ours):
    assert len({ours(name).hits for name in NAMES}) == len(NAMES)


RUN = """
import sys
import torch
from torch._dynamo.utils import counters
from migration import script_runs
package, out = sys.argv[1:]
names = script_runs.run_script("flux_torch_compile", package)
read = getattr(script_runs, f"decisions_of_{'ours' if package == script_runs.OURS else package}")
ran = read(names, 1)
torch.save((ran.output, ran.hits, counters["stats"]["unique_graphs"]), out)
"""


def run_compiled(package: str, folder: Path) -> tuple[torch.Tensor, tuple, int]:
    """In a process of its own, since it changes torch's settings."""
    out = folder / package
    command = [sys.executable, "-c", RUN, package, str(out)]
    path = [str(SCRIPTS.parents[1]), *sys.path]
    env = {"PYTHONPATH": ":".join(filter(None, path)), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env={**os.environ, **env})
    return torch.load(out)


@pytest.mark.slow
@pytest.mark.timeout(900)
@needs_cache_dit
@pytest.mark.peers
def test_torch_compile_in_the_documented_order(tmp_path):
    output, hits, num_graphs = run_compiled(OURS, tmp_path)
    peer_output, peer_hits, peer_num_graphs = run_compiled("cache_dit", tmp_path)
    assert hits == peer_hits and len(hits[0]) > 3
    assert relative_error(output, peer_output) < 1e-4
    # One graph, cut into segments; cache-dit's breaks leave one for each piece between them.
    assert num_graphs == 1 < peer_num_graphs
