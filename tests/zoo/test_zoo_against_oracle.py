"""Outputs and real decisions of twelve steps against the eager oracle, on one model at least of
each kind of graph that transformers have. FLUX, SD3, Wan and Qwen are in `test_against_oracle`."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import dit_cachegraph as dc
from dit_cachegraph.testing.checks import is_watched
from dit_cachegraph.testing.run import tensors_in
from oracles.dbcache import EagerOracle
from support.running import relative_error
from support.toy_runs import NUM_WATCHED
from zoo.checks import compiled_entry, levels_of
from zoo.entries import ENTRIES
from zoo.entry import Entry, Inputs

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

NUM_STEPS = 12
CLOSE = 1e-4
WARM_UP = 2


@dataclass(frozen=True)
class Case:
    """An entry, what its blocks take and return, and first and last blocks such that the region
    begins and ends where the model adds nothing between two blocks: there the oracle can look."""

    entry: str
    streams: tuple[str, ...] = ("hidden_states",)
    image: str = "hidden_states"
    first: int = 1
    last: int = 0
    times_deeper: int = 1
    in_turn: bool = False
    replays_values: bool = False
    is_linked: bool = False


CASES = (
    Case("lumina2"),  # A1: the graph breaks before the blocks.
    Case("sana_controlnet", first=4, times_deeper=2),  # C: controls between the blocks.
    # E1, I: long skips, and the later blocks are no additions.
    Case("hunyuan_dit", first=2, replays_values=True),
    Case("latte", first=2, last=1, in_turn=True),  # F: two lists in turn.
    Case("cosmos25_transfer", first=2),  # H: a value of its own for every other block.
    Case("bria_fibo2", ("x",), "x"),  # B2, H2, J3: made between the blocks; a mask written before.
    Case("z_image", ("x",), "x"),  # J1: context managers around the blocks.
    Case("ernie_image", ("x",), "x"),  # J4: autocast.
    Case("cosmos3", ("und_seq", "gen_seq"), "gen_seq"),  # M: streams without a batch.
    # The graph breaks among the blocks, which have a graph each.
    Case("hunyuan_image", ("hidden_states", "encoder_hidden_states"), is_linked=True),
    Case("hunyuan_video15", ("hidden_states", "encoder_hidden_states"), is_linked=True),
    Case("kandinsky5_nabla", ("visual_embed",), "visual_embed"),  # N: flex attention.
)


def entry_of(case: Case) -> Entry:
    return next(entry for entry in ENTRIES if entry.name == case.entry)


def first_output(value: object) -> Tensor:
    """The first result, however deep it lies, as the oracle's `output` has it."""
    return next(iter(tensors_in(value)))


@torch.no_grad()
def ran(compiled: nn.Module, inputs: Inputs) -> tuple[Tensor, bool, str]:
    output = first_output(compiled(**inputs))
    last = dc.summary(compiled).steps[-1]
    return output, last.hit, last.reason


def middle_diff(oracle: EagerOracle, steps: list[Inputs]) -> float:
    """A threshold that about half of the steps are under."""
    oracle.configure(residual_diff_threshold=1.0)
    diffs = sorted(d for s in steps if (d := oracle.step(**s).probe_diff) is not None)
    oracle.new_image()
    middle = len(diffs) // 2
    return (diffs[middle - 1] + diffs[middle]) / 2


@torch.no_grad()
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.entry)
def test_steps_equal_the_oracle(case: Case) -> None:
    entry = entry_of(case)
    model = entry.build(case.times_deeper)
    steps = list(entry.steps(model, levels_of(entry, NUM_STEPS)))
    first_output(model(**steps[0]))  # Some make tables at their first call that Dynamo can't trace.
    settings: dict[str, object] = {
        "Fn_compute_blocks": case.first,
        "Bn_compute_blocks": case.last,
        "max_warmup_steps": WARM_UP,
        "batch_rule": "mean",
    }
    outputs = dict.fromkeys(entry.trunk, case.streams)
    oracle = EagerOracle(
        model,
        entry.trunk,
        outputs,
        image_stream=case.image,
        in_turn=case.in_turn,
        replays_values=case.replays_values,
        **settings,
    )
    settings["residual_diff_threshold"] = middle_diff(oracle, steps)
    compiled = compiled_entry(entry, model)
    dc.configure(compiled, **settings)
    oracle.configure(**settings)
    if case.is_linked:
        for inputs in list(entry.steps(model, levels_of(entry), seed=1))[:NUM_WATCHED]:
            first_output(compiled(**inputs))
            assert is_watched(compiled)
    num_hits = 0
    for i, inputs in enumerate(steps):
        expected = oracle.step(**inputs)
        output, hit, reason = ran(compiled, inputs)
        assert hit == expected.hit, f"step {i}: {reason}; {expected.reason}, {expected.diff}"
        assert relative_error(output, first_output(expected.output)) < CLOSE, f"step {i}"
        num_hits += hit
    assert 0 < num_hits < NUM_STEPS - WARM_UP, f"{num_hits} hits decide nothing"


@torch.no_grad()
@pytest.mark.parametrize("case", [case for case in CASES if case.is_linked], ids=lambda c: c.entry)
def test_two_requests_in_turn_are_as_each_alone(case: Case) -> None:
    entry = entry_of(case)
    model = entry.build()
    compiled = compiled_entry(entry, model)
    images = [list(entry.steps(model, levels_of(entry, NUM_STEPS), seed)) for seed in (0, 1)]
    for inputs in list(entry.steps(model, levels_of(entry), seed=2))[:NUM_WATCHED]:
        first_output(compiled(**inputs))
    dc.configure(compiled, Fn_compute_blocks=1, max_warmup_steps=WARM_UP)
    dc.configure(compiled, residual_diff_threshold=1.0, max_continuous_cached_steps=2)
    alone = []
    for image in images:
        dc.reset(compiled)
        alone.append([ran(compiled, inputs) for inputs in image])
    dc.reset(compiled)
    in_turn = [[ran(compiled, inputs) for inputs in pair] for pair in zip(*images, strict=True)]
    for expected, actual in zip(zip(*alone, strict=True), in_turn, strict=True):
        for (output, hit, _), (other, other_hit, reason) in zip(expected, actual, strict=True):
            assert hit == other_hit, reason
            assert relative_error(other, output) < 1e-6
    assert sum(hit for pair in in_turn for _, hit, _ in pair) >= NUM_STEPS
