"""Nothing is compiled in a step that serves: all that the driver calls is there when the backend
returns. In a process of its own, where nothing was compiled before."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor import metrics

import dit_cachegraph as dc
from dit_cachegraph.policy.catalog import PREDICTORS, RULES
from support.every_rule import NUM_STEPS, ONE_REGION, PRUNED, SCHEDULES
from support.image_runs import image_of
from support.running import compile_cached, run_step
from support.tiny_models import FLUX

BLOCK_LISTS = {"block_lists": {"block_lists": [{"Fn_compute_blocks": 1}, {"every": 2}]}}


def num_compiled() -> tuple[dict[str, dict[str, int]], int]:
    """What Dynamo, AOTAutograd and Inductor count of their work, and kernels that were written."""
    return {group: dict(of) for group, of in counters.items()}, metrics.generated_kernel_count


@torch.no_grad()
def run_every_rule() -> None:
    """An image by each rule with each predictor, after one call that compiles."""
    model = FLUX.build(4)
    compiled = compile_cached(model, "inductor", observe_error=True)
    image = image_of(model, size=3, num_steps=NUM_STEPS)
    run_step(compiled, image[0])
    before, met = num_compiled(), set()
    for rules in (SCHEDULES, ONE_REGION, PRUNED, BLOCK_LISTS):
        for rule, options in rules.items():
            for predictor in PREDICTORS:
                dc.configure(compiled, preset="balanced", observe_error=True)
                dc.configure(compiled, rule=rule, predictor=predictor, **options)
                hits = [run_step(compiled, kwargs).hit for kwargs in image]
                assert any(hits) and not all(hits), (rule, predictor)
                assert num_compiled() == before, (rule, predictor)
                met.add(rule)
    assert met == set(RULES)
    torch.compile(lambda x: x + 1)(torch.ones(3))
    assert num_compiled() != before, "a compilation would not be seen"


@pytest.mark.slow
def test_nothing_is_compiled_after_the_backend_returned():
    folder = Path(__file__).parent
    code = "import sys; sys.path[:0] = {!r}; import test_nothing_compiles as t; t.run_every_rule()"
    folders = [str(folder), str(folder.parent)]
    done = subprocess.run(
        [sys.executable, "-c", code.format(folders)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
