"""Copies of a pipeline, in memory and through pickle: nothing is shared with the original."""

import copy
import io
import pickle

import pytest
import torch
from diffusers import DiffusionPipeline

import dit_cachegraph as dc
from support.drawing import FLUX, HITS, SETTINGS, build, cached, draw
from support.running import relative_error

pytestmark = pytest.mark.e2e


@torch.no_grad()
def halve_a_block(pipe: DiffusionPipeline) -> None:
    for parameter in dc.targets.modules_in(pipe)[0].transformer_blocks[0].parameters():
        parameter.mul_(0.5)


def recompile(pipe: DiffusionPipeline, in_place: bool) -> DiffusionPipeline:
    if in_place:
        return cached(pipe)
    model = dc.targets.modules_in(pipe)[0]
    pipe.transformer = torch.compile(model, backend="cachedit", options=SETTINGS)
    return pipe


@pytest.mark.parametrize("in_place", [True, False], ids=["model.compile", "torch.compile"])
def test_a_deep_copy_has_state_and_settings_of_its_own(in_place):
    pipe = recompile(build(), in_place)
    arguments = FLUX.arguments(1)
    before = pipe(**arguments)[0]
    num_steps = len(dc.summary(pipe).steps)
    other = copy.deepcopy(pipe)
    halve_a_block(other)
    assert dc.summary(other).steps == ()
    recompile(other, in_place)
    dc.configure(other, max_continuous_cached_steps=-1)
    # In turns, under the very same tensors.
    assert draw(other).hits == "..HHHHHHHH"
    assert len(dc.summary(pipe).steps) == num_steps
    again = draw(pipe)
    assert again.hits == HITS
    assert torch.equal(again.latents, before)
    fresh = build()
    halve_a_block(fresh)
    recompile(fresh, in_place)
    dc.configure(fresh, max_continuous_cached_steps=-1)
    assert relative_error(draw(other).latents, draw(fresh).latents) < 1e-6


def test_a_copy_in_the_middle_of_an_image_starts_from_nothing():
    pipe, copies = cached(build()), []

    def take(pipe, i, _, tensors):
        if i == 4:
            copies.append(copy.deepcopy(pipe))
        return tensors

    assert draw(pipe, callback_on_step_end=take).hits == HITS
    (other,) = copies
    assert dc.summary(other).state_nbytes == 0
    assert draw(cached(other)).hits == HITS


def test_a_pickled_transformer_works_uncompiled_and_compiled_anew():
    pipe = cached(build())
    expected = draw(pipe)
    plain = build()
    loaded = pickle.loads(pickle.dumps(pipe.transformer))
    plain.transformer = loaded
    uncached = plain(**FLUX.arguments(1))[0]
    assert dc.summary(loaded).steps == ()
    assert torch.equal(uncached, build()(**FLUX.arguments(1))[0])
    again = draw(cached(plain))
    assert again.hits == expected.hits == HITS
    assert torch.equal(again.latents, expected.latents)


def test_what_torch_compile_returned_is_saved_as_its_weights():
    pipe = recompile(build(), in_place=False)
    expected = draw(pipe)
    file = io.BytesIO()
    torch.save(pipe.transformer.state_dict(), file)
    file.seek(0)
    other = recompile(build(), in_place=False)
    halve_a_block(other)
    other.transformer.load_state_dict(torch.load(file))
    assert torch.equal(draw(other).latents, expected.latents)
