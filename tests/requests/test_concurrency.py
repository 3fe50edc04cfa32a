"""Threads, and asyncio tasks that switch between steps: each request as it is alone."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import dit_cachegraph as dc
from dit_cachegraph.requests.conditioning import Content
from dit_cachegraph.requests.track import Track
from dit_cachegraph.retention.table import RequestTable
from support.image_runs import SETTINGS, image_of, oracle_of, under
from support.running import compile_cached, relative_error, run_step
from support.tiny_models import FLUX

pytestmark = pytest.mark.e2e


@pytest.fixture
def model():
    return FLUX.build(5)


def assert_outputs_are_the_oracles(outputs, image, model, **settings) -> int:
    """Returns how many steps the oracle reused: equal outputs mean equal decisions."""
    oracle = oracle_of(model, **settings)
    num_hits = 0
    for i, (output, kwargs) in enumerate(zip(outputs, image, strict=True)):
        expected = oracle.step(**kwargs)
        num_hits += expected.hit
        assert relative_error(output, expected.output) < 1e-5, f"step {i}"
    return num_hits


@pytest.mark.parametrize("num_threads", [1, 2, 8])
@pytest.mark.parametrize("is_named", [True, False], ids=["named", "unnamed"])
def test_threads(model, num_threads, is_named):
    """Unnamed: a prompt each, and one of unguided passes that all share. Named: one prompt."""
    compiled = compile_cached(model, **SETTINGS)
    images = [image_of(model, seed=i) for i in range(num_threads)]
    if is_named:
        images = [under(images[0][0], image) for image in images]
    run_step(compiled, image_of(model, seed=99)[0])

    def draw(i: int) -> list[torch.Tensor]:
        with torch.no_grad():
            if not is_named:
                return [compiled(**kwargs)[0] for kwargs in images[i]]
            with dc.request(f"thread {i}"):
                return [compiled(**kwargs)[0] for kwargs in images[i]]

    with ThreadPoolExecutor(num_threads) as pool:
        outputs = list(pool.map(draw, range(num_threads)))
    hits = [
        assert_outputs_are_the_oracles(out, image, model)
        for out, image in zip(outputs, images, strict=True)
    ]
    assert min(hits) >= 2
    assert dc.summary(model).num_hits == sum(hits)


def test_tasks_that_switch_between_steps(model):
    """Two of three share their very conditioning; a name each, and a setting of one's own."""
    compiled = compile_cached(model, **SETTINGS)
    images = [image_of(model, seed=i) for i in range(3)]
    images[1] = under(images[0][0], images[1])
    own = [{}, {"residual_diff_threshold": 0.5}, {"Fn_compute_blocks": 2}]

    async def draw(i: int) -> list[torch.Tensor]:
        outputs = []
        with dc.request(i, **own[i]):
            for kwargs in images[i]:
                with torch.no_grad():
                    outputs.append(compiled(**kwargs)[0])
                await asyncio.sleep(0)
        return outputs

    async def draw_all() -> list[list[torch.Tensor]]:
        return await asyncio.gather(*(draw(i) for i in range(3)))

    outputs = asyncio.run(draw_all())
    for i in range(3):
        assert assert_outputs_are_the_oracles(outputs[i], images[i], model, **own[i]) >= 2
    assert [s.request for s in dc.summary(model).steps][:6] == ["0", "1", "2"] * 2


def test_threads_that_rebuild_one_text_take_its_track_over_once(monkeypatch):
    """Both find that it is theirs before either takes it."""
    table, text = RequestTable(), torch.randn(1, 4, 8)
    before = table.find(None, [text.clone()])
    track = Track(before)
    before.tracks.append(track)
    is_that_of, both_know = Content.is_that_of, threading.Barrier(2, timeout=60)

    def is_known(self, other):
        is_equal = is_that_of(self, other)
        both_know.wait()
        return is_equal

    monkeypatch.setattr(Content, "is_that_of", is_known)
    texts = [text.clone() for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda own: table.find(None, [own]), texts))
    assert sorted(len(conditioning.tracks) for conditioning in found) == [0, 1]
    assert next(c for c in found if c.tracks) is track.conditioning
    assert len(table) == 2


def test_one_thread_that_rebuilds_its_text_takes_its_tracks_over_each_time():
    table, text = RequestTable(), torch.randn(1, 4, 8)
    found = {table.find(None, [text.clone()]).label for _ in range(5)}
    assert found == {"#1"}
