"""cache-dit's options for guidance: taken, and what they say holds by itself."""

import itertools

import pytest

import dit_cachegraph as dc
from support.image_runs import image_of, oracle_of
from support.running import assert_same_run, compile_cached, run_step
from support.tiny_models import FLUX, WAN

DEPTH = 6
SETTINGS = {"Fn_compute_blocks": 1, "residual_diff_threshold": 0.25, "max_warmup_steps": 2}


def guided(model, tiny=FLUX) -> tuple[list, list]:
    """The steps of two passes with the same latents: with a prompt, and without."""
    cond, uncond = (image_of(model, tiny, seed=seed, size=3) for seed in (0, 3))
    pairs = zip(cond, uncond, strict=True)
    shared = ("hidden_states", "timestep")
    return cond, [{**u, **{name: c[name] for name in shared}} for c, u in pairs]


@pytest.mark.e2e
def test_passes_are_told_apart_whatever_is_said():
    """Either pass first, and options that say so, that don't, and that are wrong: each pass decides
    and gives what it does alone."""
    model = FLUX.build(DEPTH)
    compiled = compile_cached(model, **SETTINGS)
    passes = guided(model)
    said = itertools.product((None, True, False), (False, True), (passes, passes[::-1]))
    for separate, compute_first, in_order in said:
        dc.configure(compiled, enable_separate_cfg=separate, cfg_compute_first=compute_first)
        dc.reset(compiled)
        ran = [[], []]
        for kwargs in zip(*in_order, strict=True):
            for own, one in zip(ran, kwargs, strict=True):
                own.append(run_step(compiled, one))
        for own, image in zip(ran, in_order, strict=True):
            assert_same_run(own, oracle_of(model, **SETTINGS), image)
            assert any(step.hit for step in own)


@pytest.mark.e2e
def test_one_pass_is_one_pass_whatever_is_said():
    model = FLUX.build(DEPTH)
    compiled = compile_cached(model, **SETTINGS, enable_separate_cfg=True, cfg_compute_first=True)
    image = image_of(model, size=3)
    assert_same_run([run_step(compiled, k) for k in image], oracle_of(model, **SETTINGS), image)


@pytest.mark.parametrize(
    ("tiny", "settings"),
    [
        (WAN, {"rule": "dbprune", **SETTINGS}),
        (WAN, {"rule": "dbprune", **SETTINGS, "enable_dynamic_prune_threshold": True}),
        (WAN, {**SETTINGS, "Bn_compute_blocks": 3, "Bn_compute_blocks_ids": (),
               "non_compute_blocks_diff_threshold": 0.25}),
        (FLUX, {"block_lists": [SETTINGS, {**SETTINGS, "residual_diff_threshold": 0.15}]}),
    ],
    ids=["dbprune", "dynamic", "last blocks", "lists"],
)  # fmt: skip
def test_the_second_pass_may_go_by_the_diffs_of_the_first(tiny, settings):
    """cfg_diff_compute_separate=False: region by region, and so the same blocks are reused."""
    model = tiny.build(DEPTH)
    compiled = compile_cached(model)
    reused = {}
    for separate in (True, False):
        dc.configure(compiled, **_shared(settings, separate=separate))
        dc.reset(compiled)
        seen = []
        for pair in zip(*guided(model, tiny), strict=True):
            for kwargs in pair:
                run_step(compiled, kwargs)
                last = dc.summary(compiled).steps[-1]
                seen.append((last.skipped, last.diff))
        reused[separate] = seen
    first, second = reused[False][::2], reused[False][1::2]
    assert first == second == reused[True][::2]
    assert reused[True][1::2] != second
    assert any(skipped for skipped, _ in first)


def _shared(settings, *, separate: bool):
    option = {"cfg_diff_compute_separate": separate}
    if "block_lists" in settings:
        return {"block_lists": [{**own, **option} for own in settings["block_lists"]]}
    return {**settings, **option}
