"""Which weights a step moves, or needs at all: those of blocks that a hit skips are not read. What
diffusers moves at a hit all the same is counted, and told."""

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers.hooks import apply_group_offloading
from torch import Tensor, nn

import dit_cachegraph as dc
from support.toy_dits import ToyDiT, gated_dit, toy_inputs
from support.toy_runs import NUM_WATCHED, compile_toy, run, toy_steps

NUM_BLOCKS = 24
CPU = torch.device("cpu")


def nbytes(module: nn.Module) -> int:
    return sum(weight.nbytes for weight in module.parameters())


def moved_by(model: nn.Module, call: Callable[[], Tensor]) -> int:
    """Bytes of the weights that lie elsewhere after the call: they were read from disk again."""
    before = [(weight, weight.data) for weight in model.parameters()]
    call()
    return sum(w.nbytes for w, data in before if w.data_ptr() != data.data_ptr())


def free(module: nn.Module) -> None:
    for weight in module.parameters():
        weight.untyped_storage().resize_(0)


def test_a_hit_reads_no_weight_of_a_skipped_block():
    """So they need not be there: under model offload nothing is moved for it, and what moves
    weights as they are read moves a twentieth."""
    model = gated_dit(NUM_BLOCKS).requires_grad_(False)
    twin = copy.deepcopy(model)
    compiled, other = (compile_toy(m, residual_diff_threshold=1.0) for m in (model, twin))
    first, second, third = toy_steps([90.0, 80.0, 70.0])
    for each in (compiled, other):
        run(each, first)
    for block in model.blocks[1:]:
        free(block)
    for inputs in (second, third):
        assert torch.equal(run(compiled, inputs), run(other, inputs))
    assert [step.hit for step in dc.summary(compiled).steps] == [False, True, True]
    skipped = sum(nbytes(block) for block in twin.blocks[1:])
    assert 1 - skipped / nbytes(twin) < 0.15


def test_group_offloading_moves_what_a_hit_skips_and_that_is_told(tmp_path: Path):
    model: ToyDiT = gated_dit(NUM_BLOCKS).requires_grad_(False)
    apply_group_offloading(
        model, CPU, CPU, "block_level", num_blocks_per_group=1, offload_to_disk_path=str(tmp_path)
    )
    settings = {"Fn_compute_blocks": 1, "max_warmup_steps": 0, "residual_diff_threshold": 1.0}
    model.compile(backend="cachedit", options={"inner_backend": "eager", **settings})
    for i in range(NUM_WATCHED):
        run(model, toy_inputs(80.0 - 10 * i, seed=7))
    moved = [moved_by(model, lambda s=step: run(model, s)) for step in toy_steps([60.0, 50.0])]
    report = dc.summary(model)
    assert [step.hit for step in report.steps[-2:]] == [False, True]
    assert report.steps[-1].skipped == ((1, NUM_BLOCKS),)
    assert moved == [nbytes(model), nbytes(model)]
    (note,) = report.notes
    assert note == (
        "diffusers' group offloading moves the weights of each block of ToyDiT at every step, also "
        "of those that a hit skips, which saves their work alone: call "
        "`pipe.enable_model_cpu_offload()` in its place, which moves the whole model once an "
        "image, if the device has room for it"
    )
    assert note in str(report)
    dc.check(model)
