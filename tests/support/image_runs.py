"""Images for the tests of state: their steps, their oracles, and ways to run several of them."""

import random
from collections.abc import Sequence

from oracles.dbcache import EagerOracle
from support.running import Ran, relative_error, run_step
from support.tiny_models import FLUX, Inputs, TinyModel, at_step, trajectory

SETTINGS = {"Fn_compute_blocks": 1, "residual_diff_threshold": 0.25, "max_warmup_steps": 2}
NUM_STEPS = 9


def oracle_of(model, tiny: TinyModel = FLUX, **settings: object) -> EagerOracle:
    return EagerOracle(model, tiny.block_lists, tiny.stream_outputs, **{**SETTINGS, **settings})


def image_of(
    model, tiny=FLUX, seed=0, batch=2, size=4, text_tokens=5, num_steps=NUM_STEPS
) -> list[Inputs]:
    """The steps of one image, with conditioning objects and noise of its own."""
    inputs = tiny.make_inputs(model, batch=batch, size=size, text_tokens=text_tokens, seed=seed)
    return list(trajectory(tiny, inputs, num_steps, seed=seed))


def under(conditioning: Inputs, image: Sequence[Inputs]) -> list[Inputs]:
    """The image with the conditioning objects of another one."""
    return [at_step(conditioning, step["hidden_states"], step["timestep"]) for step in image]


def interleave(compiled, images: Sequence[Sequence[Inputs]], seed: int = 0) -> list[list[Ran]]:
    """Run the steps of several images in random order; returns each image's own run."""
    rng = random.Random(seed)
    left = [list(image) for image in images]
    ran: list[list[Ran]] = [[] for _ in images]
    while any(left):
        i = rng.choice([i for i, image in enumerate(left) if image])
        ran[i].append(run_step(compiled, left[i].pop(0)))
    return ran


def assert_never_of_another(ran: Sequence[Ran], model, image: Sequence[Inputs], **settings) -> None:
    """Whatever was decided: every output is what these decisions give to this image alone."""
    mask = [0 if step.hit else 1 for step in ran]
    told = {"steps_computation_mask": mask, "steps_computation_policy": "static"}
    oracle = oracle_of(model, **{**settings, **told, "max_warmup_steps": 0})
    for i, (step, kwargs) in enumerate(zip(ran, image, strict=True)):
        expected = oracle.step(**kwargs)
        assert expected.hit == step.hit, f"step {i}: {step.reason}, oracle: {expected.reason}"
        assert relative_error(step.output, expected.output) < 1e-5, f"step {i}: {step.reason}"
