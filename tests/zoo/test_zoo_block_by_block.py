"""An entry that is refused as one graph, since its text is cut to a length that depends on data,
and cached where its blocks are compiled one by one, as the refusal says."""

import pytest
import torch

import dit_cachegraph as dc
from dit_cachegraph.testing.checks import compiled_for
from support.running import relative_error
from support.toy_runs import NUM_WATCHED
from zoo.checks import levels_of
from zoo.entries import ENTRIES

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

NUM_STEPS = 8
SETTINGS = {"Fn_compute_blocks": 1, "max_warmup_steps": 2, "residual_diff_threshold": 0.0}


@torch.no_grad()
def test_a_text_of_its_true_length():
    (entry,) = [entry for entry in ENTRIES if entry.name == "framepack"]
    model = entry.build()
    steps = list(entry.steps(model, levels_of(entry, NUM_WATCHED + NUM_STEPS)))
    with pytest.warns(dc.NotCachedWarning, match="has a size that depends on data"):
        compiled_for(entry.build(), fullgraph=True)(**steps[0])
    expected = [model(**inputs)[0] for inputs in steps]
    for name in entry.trunk:
        for block in model.get_submodule(name):
            options = {"inner_backend": "eager", **SETTINGS}
            block.compile(backend="cachedit", options=options)
    for inputs, picture in zip(steps, expected, strict=True):
        assert relative_error(model(**inputs)[0], picture) < 1e-5
    dc.check(model)
    assert dc.summary(model).num_hits == 0
    dc.reset(model)
    dc.configure(model, residual_diff_threshold=1.0)
    for inputs in steps[:NUM_STEPS]:
        model(**inputs)
    hits = [step.hit for step in dc.summary(model).steps[-NUM_STEPS:]]
    assert hits == [False, False] + [True] * (NUM_STEPS - 2)
