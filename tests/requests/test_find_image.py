"""Which image a call goes on with: samples of latents, and the choice between images under way."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dit_cachegraph import ops
from dit_cachegraph.requests.conditioning import Conditioning, Content
from dit_cachegraph.requests.fingerprint import Fingerprint
from dit_cachegraph.requests.latents import MIN_CORRELATION, closeness, objects_of
from dit_cachegraph.requests.match import AMBIGUOUS, find_track
from dit_cachegraph.requests.schedule import Known, advance
from dit_cachegraph.requests.track import Track

KNOWN = Known(direction=-1, keeps_start=True)
SHAPE = (torch.Size([1, 4, 16]),)


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(256).astype(np.float32)


def sample_of(image: int, progress: float) -> np.ndarray:
    """From the noise of an image towards what it draws."""
    return (1 - progress) * noise(image) + progress * noise(100 + image)


def sight_of(image: int, step: int, signature: int = 0) -> Fingerprint:
    clock = (1 - step / 10, 2 - step / 5)
    return Fingerprint(clock, sample_of(image, step / 10), SHAPE, None, signature)


class Caller:
    """Conditioning under which images are called; says which track each call was taken for."""

    def __init__(self) -> None:
        self.conditioning = Conditioning[Track]("#1", None, (), None, content_of(None, []))

    def call(self, call: Fingerprint, partner: Track | None = None) -> tuple[Track, str | None]:
        match = find_track(self.conditioning.tracks, call, KNOWN, partner)
        track = match.track
        if track is None:
            track = Track(self.conditioning)
            self.conditioning.tracks.append(track)
        track.trajectory, track.last_call = match.step.trajectory, call
        return track, match.step.doubt


def content_of(key, tensors) -> Content:
    return Content(key, tensors)


@given(st.lists(st.integers(0, 3), max_size=30))
def test_images_in_any_order_are_each_their_own(turns):
    caller, known = Caller(), {}
    for i, turn in enumerate(turns):
        step = turns[:i].count(turn)
        if step == 10:
            break
        image, doubt = caller.call(sight_of(turn, step))
        assert image is known.setdefault(turn, image)
        assert doubt is None


def test_latents_that_could_be_of_either_image_are_in_doubt():
    caller = Caller()
    first, _ = caller.call(sight_of(0, 0))
    caller.call(sight_of(0, 0)._replace(sample=sample_of(0, 0) + 0.3 * noise(7)))
    between = sight_of(0, 1)._replace(sample=sample_of(0, 0.1) + 0.15 * noise(7))
    _, doubt = caller.call(between)
    assert doubt == AMBIGUOUS


def test_the_partner_decides_where_latents_do_not():
    caller = Caller()
    images = [
        caller.call(sight_of(0, 0)._replace(sample=sample_of(0, 0) + 0.3 * i * noise(7)))[0]
        for i in range(2)
    ]
    between = sight_of(0, 1)._replace(sample=sample_of(0, 0.1) + 0.15 * noise(7))
    for image in images:
        match = find_track(caller.conditioning.tracks, between, KNOWN, image)
        assert (match.track, match.step.doubt) == (image, None)


def test_without_latents_two_images_are_in_doubt_and_one_is_not():
    caller = Caller()
    caller.call(sight_of(0, 0)._replace(sample=None))
    assert caller.call(sight_of(0, 1)._replace(sample=None))[1] is None
    caller.call(sight_of(1, 0)._replace(sample=None))
    assert caller.call(sight_of(0, 2)._replace(sample=None))[1] == AMBIGUOUS


def test_another_trunk_on_the_same_latents_is_an_image_of_its_own():
    caller = Caller()
    for step in range(4):
        images = [caller.call(sight_of(0, step, signature)) for signature in (0, 1)]
        assert [doubt for _, doubt in images] == [None, None]
        assert [image.last_call.signature for image, _ in images] == [0, 1]
    assert len(caller.conditioning.tracks) == 2


def test_another_trunk_on_other_latents_goes_on_with_the_image():
    """The graph changed in mid-run: a control ended."""
    caller = Caller()
    image, _ = caller.call(sight_of(0, 0))
    caller.call(sight_of(0, 1))
    assert caller.call(sight_of(0, 2, signature=1)) == (image, None)


def test_one_seed_again_with_another_guidance_scale_is_a_new_image():
    """The timestep stands where it stood, and so do the latents; only a constant has moved."""
    caller = Caller()
    sight = sight_of(0, 0)._replace(clock=(1.0, 2.0, 5.0, 10.0))
    first, _ = caller.call(sight)
    again, _ = caller.call(sight._replace(clock=(1.0, 2.0, 3.5, 7.0)))
    assert again is not first


def test_closeness_ignores_what_stands_still():
    """An edit's source picture lies beside the latents in one tensor."""
    still = noise(5)[:200]
    a, b = (np.concatenate([still, noise(i)[:56]]) for i in (0, 1))
    assert closeness(a, b) == pytest.approx(closeness(noise(0)[:56], noise(1)[:56]), abs=1e-6)
    assert closeness(a, a) == 1.0


def test_a_batch_is_as_near_as_the_picture_that_moved_most():
    """Of 256 numbers a picture; a batch that is read as one flat tensor is one picture."""
    before = np.concatenate([noise(i) for i in range(4)])
    moved = 0.95 * before + 0.05 * np.concatenate([noise(i) for i in range(4, 8)])
    assert closeness(moved, before) > 0.9
    swapped = moved.copy()
    swapped[512:768] = noise(9)
    assert closeness(swapped, before) == closeness(noise(9), before[512:768]) < MIN_CORRELATION
    swapped[700] = np.nan
    assert closeness(swapped, before) is None


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_closeness_of_values_that_are_not_finite_is_not_known(bad):
    broken = noise(0)
    broken[3] = bad
    assert closeness(broken, noise(0)) is None
    assert closeness(broken, noise(1)) is None
    assert closeness(noise(1), broken) is None


def test_closeness_of_a_constant():
    """A picture is given in one pass of guidance, and zeros in another."""
    zeros = np.zeros(256, np.float32)
    assert closeness(noise(0), zeros) == closeness(zeros, noise(0)) == 0.0
    assert closeness(zeros + 1, zeros) == 1.0


def test_closeness_of_other_sizes_and_of_nothing():
    assert closeness(noise(0), noise(0)[:100]) == 0.0
    assert closeness(None, noise(0)) is None


@pytest.mark.parametrize("shape", [(1, 16, 128, 128), (2, 4096, 64), (2, 16, 5, 30, 52), (3, 5)])
def test_samples_of_independent_latents_are_apart(shape):
    """For shapes whose sizes are powers of two as well: the sample is from all over the tensor."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, *shape, generator=generator)
    samples = [ops.latents_sample(x).numpy() for x in (a, b, 0.9 * a + 0.1 * b)]
    assert samples[0].shape == (256,)
    assert ops.latents_sample(a, is_batched=True).shape == (256 * a.shape[0],)
    for i, row in enumerate(ops.latents_sample(a, is_batched=True).reshape(-1, 256)):
        assert torch.equal(row, ops.latents_sample(a[i]))
    if a.numel() > 1000:
        assert abs(closeness(samples[0], samples[1])) < MIN_CORRELATION
        columns = {float(x) for x in samples[0]}
        assert len(columns) > 250
    assert closeness(samples[0], samples[2]) > 0.9


def test_a_sample_is_of_the_logical_elements_whatever_the_strides():
    latents = torch.randn(2, 6, 8, 10)
    permuted = latents.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(ops.latents_sample(latents), ops.latents_sample(permuted))


def test_objects_tell_storage_offset_and_shape():
    base = torch.zeros(4, 3)
    one = objects_of([base[:2]])
    assert one.are_those_of(objects_of([base[:2]]))
    for other in (base[1:3], base[:3], torch.zeros(2, 3)):
        assert not one.are_those_of(objects_of([other]))
    assert not objects_of([]).are_those_of(objects_of([]))


def test_content_tells_tensors_apart_by_what_they_hold():
    text = torch.randn(1, 5, 8)
    content = content_of(None, [text, torch.ones(3, dtype=torch.bool)])
    assert content.is_that_of(content_of(None, [text.clone(), torch.ones(3, dtype=torch.bool)]))
    swapped = text.flip(1)
    for key, tensors in [
        (None, [swapped, torch.ones(3, dtype=torch.bool)]),
        (None, [text, torch.ones(3)]),
        (None, [text[:, :4], torch.ones(3, dtype=torch.bool)]),
        ("a", [text, torch.ones(3, dtype=torch.bool)]),
    ]:
        assert not content.is_that_of(content_of(key, tensors))
    broken = content_of(None, [text * torch.nan])
    assert not broken.is_that_of(broken)
    assert not content_of(None, []).is_that_of(content_of(None, []))


def test_content_of_complex_and_empty_tensors():
    rope = torch.polar(torch.ones(4, 3), torch.randn(4, 3))
    assert content_of(None, [rope]).is_that_of(content_of(None, [rope.clone()]))
    assert not content_of(None, [rope]).is_that_of(content_of(None, [rope.conj().resolve_conj()]))
    assert content_of(None, [torch.empty(0)]).is_that_of(content_of(None, [torch.empty(0)]))


def test_advance_is_what_the_choice_goes_by():
    """A call that fits no image begins one, with the moment that `advance` gives it."""
    sight = sight_of(3, 0)
    match = find_track([], sight, KNOWN, None)
    assert match.track is None and match.step.is_new_image
    going_on = sight_of(3, 1)
    moment = advance(match.step.trajectory, going_on.clock, SHAPE, KNOWN)
    assert moment.trajectory.num_calls == 2
