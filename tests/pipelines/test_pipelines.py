"""Real diffusers pipelines, unchanged, over several images: hits, and nothing carried over."""

import gc
from collections import Counter
from dataclasses import dataclass

import pytest
import torch
from pytest import approx
from torch import Tensor

import dit_cachegraph as dc
from dit_cachegraph.report import Report
from support.more_pipelines import MORE_PIPELINES
from support.running import relative_error
from support.tiny_pipelines import FAST_PIPELINES, TinyPipeline

pytestmark = pytest.mark.e2e

# A threshold of 1 reuses whatever the diff is, so that all decisions are known beforehand.
SETTINGS = {
    "inner_backend": "eager",
    "Fn_compute_blocks": 1,
    "max_warmup_steps": 2,
    "residual_diff_threshold": 1.0,
    "max_continuous_cached_steps": 2,
}
HITS = (False, False, True, True, False, True, True, False, True, True)


@dataclass(frozen=True)
class Decided:
    """One step; `branch` counts the branches of an image in the order of their first calls."""

    branch: int
    step: int
    hit: bool
    reason: str
    diff: float | None


@dataclass(frozen=True)
class Image:
    """What one call of a pipeline gave."""

    latents: Tensor
    steps: tuple[Decided, ...]

    def of_branch(self, branch: int) -> list[Decided]:
        return [step for step in self.steps if step.branch == branch]


@dataclass(frozen=True)
class Drawn:
    """All that was drawn with one kind of pipeline: one compiled pipeline drew `first`, `second`,
    then twice under the same arguments but the noise, of which `again` is the later one; `held`
    are the reports once the arguments of each were gone. A second pipeline, built anew, drew the
    two `..._alone`, with a reset before the later one. `of_uncompiled` is the report of one that
    was never compiled."""

    tiny: TinyPipeline
    first: Image
    second: Image
    again: Image
    held: tuple[Report, ...]
    second_alone: Image
    again_alone: Image
    at_threshold_0: Image
    uncompiled: Tensor
    of_uncompiled: Report


def compiled(tiny: TinyPipeline):
    """A pipeline with a transformer, and so with requests, of its own; what Dynamo has compiled for
    one serves the next."""
    pipe = tiny.build()
    pipe.set_progress_bar_config(disable=True)
    pipe.transformer = torch.compile(pipe.transformer, backend="cachedit", options=SETTINGS)
    return pipe


def draw(pipe, arguments) -> Image:
    num_before = len(dc.summary(pipe).steps)
    latents = pipe(**arguments)[0]
    steps = dc.summary(pipe).steps[num_before:]
    labels = list(dict.fromkeys(step.request for step in steps))
    decided = (Decided(labels.index(s.request), s.step, s.hit, s.reason, s.diff) for s in steps)
    return Image(latents, tuple(decided))


def draw_twice(pipe, arguments, noises) -> Image:
    """The later of two images under the very same tensors, each from noise of its own."""
    return [draw(pipe, {**arguments, "generator": noise}) for noise in noises][-1]


def held(pipe) -> Report:
    gc.collect()
    return dc.summary(pipe)


def noise(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


PIPELINES = (
    *(pytest.param(tiny, id=tiny.name) for tiny in FAST_PIPELINES),
    *(pytest.param(tiny, id=tiny.name, marks=pytest.mark.slow) for tiny in MORE_PIPELINES),
)


@pytest.fixture(scope="module", params=PIPELINES)
def drawn(request) -> Drawn:
    torch._dynamo.reset()
    tiny = request.param
    uncompiled = tiny.build()
    uncompiled.set_progress_bar_config(disable=True)
    plain = uncompiled(**tiny.arguments(2))[0]
    pipe = compiled(tiny)
    first, held_1 = draw(pipe, tiny.arguments(1)), held(pipe)
    second, held_2 = draw(pipe, tiny.arguments(2)), held(pipe)
    again, held_3 = draw_twice(pipe, tiny.arguments(3), (noise(3), noise(4))), held(pipe)
    pipe = compiled(tiny)
    second_alone = draw(pipe, tiny.arguments(2))
    dc.reset(pipe)
    again_alone = draw(pipe, {**tiny.arguments(3), "generator": noise(4)})
    dc.configure(pipe, residual_diff_threshold=0.0)
    at_threshold_0 = draw(pipe, tiny.arguments(2))
    return Drawn(
        tiny,
        first,
        second,
        again,
        (held_1, held_2, held_3),
        second_alone,
        again_alone,
        at_threshold_0,
        plain,
        dc.summary(uncompiled),
    )


def test_both_images_hit_at_the_steps_they_should(drawn):
    for image in (drawn.first, drawn.second, drawn.again):
        for branch in range(drawn.tiny.num_branches):
            hits = tuple(step.hit for step in image.of_branch(branch))
            assert hits == HITS[: drawn.tiny.num_steps]


def test_guidance_has_a_branch_for_each_pass(drawn):
    num_calls = drawn.tiny.num_steps
    for image in (drawn.first, drawn.second, drawn.again):
        counts = Counter(step.branch for step in image.steps)
        assert counts == dict.fromkeys(range(drawn.tiny.num_branches), num_calls)


def test_each_image_begins_with_step_0(drawn):
    for image in (drawn.second, drawn.again):
        for branch in range(drawn.tiny.num_branches):
            steps = image.of_branch(branch)
            assert [step.step for step in steps] == list(range(len(steps)))
            assert (steps[0].reason, steps[0].diff) == ("warmup", None)


def test_it_is_called_cached_exactly_where_there_are_hits(drawn):
    """Without `NotCachedWarning`, which is an error in this room."""
    images = (drawn.first, drawn.second, drawn.again)
    for image, report in zip(images, drawn.held, strict=True):
        assert report.is_cached and report.standing == "cached"
        assert any(step.hit for step in image.steps)
    last = drawn.held[-1]
    assert last.num_hits == sum(step.hit for step in last.steps)
    assert not drawn.of_uncompiled.is_cached
    assert drawn.of_uncompiled.num_hits == 0


def assert_same_image(image: Image, alone: Image) -> None:
    decisions = [(step.branch, step.step, step.hit) for step in image.steps]
    assert decisions == [(step.branch, step.step, step.hit) for step in alone.steps]
    for step, expected in zip(image.steps, alone.steps, strict=True):
        assert step.diff == (None if expected.diff is None else approx(expected.diff, rel=1e-4))
    assert relative_error(image.latents, alone.latents) < 1e-5


def test_the_second_image_is_drawn_as_if_alone(drawn):
    assert_same_image(drawn.second, drawn.second_alone)
    assert relative_error(drawn.second.latents, drawn.first.latents) > 0.1


def test_an_image_under_the_same_tensors_is_drawn_as_if_alone(drawn):
    assert_same_image(drawn.again, drawn.again_alone)


def test_nothing_is_held_once_the_arguments_are_gone(drawn):
    assert [report.state_nbytes for report in drawn.held] == [0, 0, 0]
    assert [report.num_branches for report in drawn.held] == [0, 0, 0]


def test_a_threshold_of_0_draws_what_the_uncompiled_pipeline_does(drawn):
    assert not any(step.hit for step in drawn.at_threshold_0.steps)
    assert relative_error(drawn.at_threshold_0.latents, drawn.uncompiled) < 1e-4
    # Else the cache would be of no effect, and equal images would say nothing.
    assert relative_error(drawn.second.latents, drawn.uncompiled) > 1e-3
