"""`assert_cacheable(model, inputs)`: all checks, on any author's model."""

import copy
from collections.abc import Callable, Sequence

from torch import nn

from dit_cachegraph.report import GraphReport
from dit_cachegraph.targets import modules_in
from dit_cachegraph.testing.checks import (
    assert_a_hit_skips_half,
    assert_block_matters,
    assert_default_rule_holds,
    assert_equals_eager,
    assert_hits,
    assert_replays,
    blocks_called,
    blocks_found,
    cached_graph,
    compiled_for,
    tolerance_of,
)
from dit_cachegraph.testing.run import Inputs, call
from dit_cachegraph.testing.steps import steps_from

NUM_STEPS = 10


def assert_cacheable(
    model: nn.Module,
    inputs: Inputs | Callable[[int], Inputs],
    *,
    trunk: Sequence[str] | None = None,
    fullgraph: bool = False,
    tolerance: float | None = None,
) -> GraphReport:
    """Check that `model` can be cached, with right results, and return what was found.

    With nothing reused it gives what eager PyTorch does; a replay on the same inputs gives what
    computing them gave; over ten steps every one after the warm-up can be reused; a reused step
    runs half of the blocks at most; and a change of these blocks is seen in the output. A copy of
    the model is used, in eval mode and without gradients; it is not compiled by a C++ compiler, so
    a tiny one on the CPU takes seconds.

    inputs: keyword arguments of the first step, or a function from a step's number (0 to 9) to
        its arguments. Conditioning has to be the very same objects at every step.
    trunk: names of the lists that hold the blocks. They are found by themselves, unless the blocks
        are functions.
    fullgraph: a graph break is an error, also where the blocks are cached all the same.
    tolerance: relative, of outputs that should be equal; None: 1e-4, or 0.02 where weights are
        in half precision.

    Raises:
        NotCacheable: an `AssertionError` that says what was seen; for a model that can't be cached
            why not, with the line of its source.
        ValueError: no timestep or no latents are found among the inputs of one step.
    """
    (model,) = modules_in(model)  # Of one that is compiled, what it was before.
    model = copy.deepcopy(model).eval().requires_grad_(False)
    tolerance = tolerance_of(model) if tolerance is None else tolerance
    steps = (
        [inputs(i) for i in range(NUM_STEPS)]
        if callable(inputs)
        else steps_from(model, inputs, NUM_STEPS)
    )
    eager = [call(model, step) for step in steps[:3]]
    compiled = compiled_for(model, fullgraph=fullgraph)
    assert_equals_eager(compiled, steps, eager, tolerance)
    graph = cached_graph(compiled)
    blocks = blocks_called(model, trunk, steps[0]) if trunk else blocks_found(compiled)
    assert_block_matters(model, blocks[len(blocks) // 2], steps[0], eager[0])
    assert_hits(compiled, steps)
    assert_replays(compiled, steps, tolerance)
    assert_default_rule_holds(compiled, steps, eager, tolerance)
    assert_a_hit_skips_half(compiled, steps, blocks, tolerance)
    return graph
