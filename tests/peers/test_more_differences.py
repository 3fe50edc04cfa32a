"""More of where cache-dit 1.5.3 is wrong, mostly on toys: defaults, shapes, types, block lists,
what it does to the user's config, and contexts that outlive their image or end before it."""

import copy

import pytest

pytest.importorskip("cache_dit", reason='cache-dit is not installed: pip install -e ".[peers]"')

import cache_dit
import torch

import dit_cachegraph as dc
from support.peer_runs import FluxPeerPipeline, relative_error
from support.tiny_pipelines import FAST_PIPELINES
from support.toy_dits import CrossDiT, ToyDiT, TwoListDiT, gated_dit, toy_inputs
from support.toy_runs import compile_toy, toy_steps

pytestmark = [pytest.mark.peers, pytest.mark.e2e]

NUM_STEPS = 6
ALWAYS = {"Fn_compute_blocks": 1, "residual_diff_threshold": 1.0, "max_warmup_steps": 1}
Pattern = cache_dit.ForwardPattern
SAME_OUTPUT, WRONG_OUTPUT = 1e-5, 0.02


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def steps_of_image(text_seed=0):
    steps = toy_steps([90.0 - 6 * i for i in range(NUM_STEPS)])
    text = toy_inputs(0.0, seed=text_seed)["encoder_hidden_states"]
    return [{**step, "encoder_hidden_states": text} for step in steps]


def run_all(model, steps):
    return [model(**step) for step in steps]


def errors(got, wanted):
    return [relative_error(g, w) for g, w in zip(got, wanted, strict=True)]


def cached_by_peer(model, config=None, **hints):
    hints = {"blocks": model.blocks, "forward_pattern": Pattern.Pattern_3, **hints}
    adapter = cache_dit.BlockAdapter(transformer=model, **hints)
    config = cache_dit.DBCacheConfig(**ALWAYS) if config is None else config
    cache_dit.enable_cache(adapter, cache_config=config)
    return model


def stats_of_peer(model):
    (stats, *_) = cache_dit.summary(model, logging=False)
    return stats


def hits_of_ours(model):
    return [step.step for step in dc.summary(model).steps if step.hit]


def test_first_blocks_by_default_in_a_small_model():
    settings = {"residual_diff_threshold": 0.5, "max_warmup_steps": 2}
    steps = steps_of_image()
    peer = cached_by_peer(gated_dit(4), cache_dit.DBCacheConfig(**settings))
    with pytest.raises(AssertionError, match="Fn_compute_blocks 8 must be less than"):
        peer(**steps[0])
    ours = compile_toy(gated_dit(4), rule="dbcache", Fn_compute_blocks=None, **settings)
    # By way of cache-dit's own calls, whose default is its 8.
    enabled = gated_dit(4)
    dc.enable_cache(enabled, cache_config=dc.DBCacheConfig(**settings))
    for model in (ours, enabled):
        run_all(model, steps)
        (graph,) = dc.summary(model).graphs
        assert graph.region == (1, 4)
        assert len(hits_of_ours(model)) >= 2


class Cropping(ToyDiT):
    """Drops tokens before its blocks, as many as it is told."""

    num_tokens = 6

    def trunk(self, h, temb, e):
        return super().trunk(h[:, : self.num_tokens], temb, e)


def test_another_shape_where_all_is_reused():
    plain, peer, mine = (Cropping(gated_dit(4).blocks) for _ in range(3))
    ours = compile_toy(mine, **ALWAYS)
    cached_by_peer(peer)
    first, second, third, fourth, *_ = steps_of_image()
    for step in (first, second):
        assert relative_error(ours(**step), peer(**step)) < SAME_OUTPUT
    for model in (plain, peer, mine):
        model.num_tokens = 4
    # From a threshold of 1 on it does not compare, neither numbers nor shapes.
    with pytest.raises(RuntimeError, match=r"size of tensor a \(6\) must match .* b \(4\)"):
        peer(**third)
    assert relative_error(ours(**third), plain(**third)) < SAME_OUTPUT
    assert dc.summary(ours).steps[-1].reason == "new shape"
    ours(**fourth)
    assert hits_of_ours(ours) == [1, 3]


def test_a_larger_picture_where_all_is_reused():
    steps = steps_of_image()
    larger = {**steps[0], "hidden_states": torch.cat([steps[0]["hidden_states"]] * 2, dim=1)}
    peer, ours = cached_by_peer(gated_dit(4)), compile_toy(gated_dit(4), **ALWAYS)
    for model in (peer, ours):
        run_all(model, steps)
    with pytest.raises(RuntimeError, match=r"size of tensor a \(6\) must match .* b \(12\)"):
        peer(**larger)
    assert relative_error(ours(**larger), gated_dit(4)(**larger)) < SAME_OUTPUT
    last = dc.summary(ours).steps[-1]
    assert (last.step, last.hit) == (0, False)


def test_a_config_for_two_models():
    given = {"Fn_compute_blocks": 1, "residual_diff_threshold": 0.5, "max_warmup_steps": 1}
    branches = [steps_of_image(), steps_of_image(text_seed=4)]
    guided = [step for both in zip(*branches, strict=True) for step in both]

    def hits_of_peer(config):
        model = cached_by_peer(CrossDiT(1, 4), config, has_separate_cfg=True)
        run_all(model, guided)
        stats = stats_of_peer(model)
        return stats.cached_steps, stats.cfg_cached_steps

    config = cache_dit.DBCacheConfig(**given)
    declared = hits_of_peer(copy.deepcopy(config))
    assert min(map(len, declared)) >= 3
    assert config.enable_separate_cfg is None
    # What it finds of the first model is written into the user's config, and the second goes by it.
    cached_by_peer(CrossDiT(1, 4), config)
    assert config.enable_separate_cfg is False
    assert hits_of_peer(config) == ([], [])
    mine = dc.DBCacheConfig(**given)
    before = copy.deepcopy(vars(mine))
    plain, model = CrossDiT(1, 4), CrossDiT(1, 4)
    dc.enable_cache(plain, cache_config=mine)
    run_all(plain, branches[0])
    dc.enable_cache(model, cache_config=mine)
    run_all(model, guided)
    reported = dc.summary(model).steps
    assert declared == tuple([s.step for s in reported[i::2] if s.hit] for i in range(2))
    assert vars(mine) == before


def test_a_second_image_of_a_number_of_steps_that_nobody_said():
    first, second = steps_of_image(), steps_of_image(text_seed=4)
    alone = run_all(cached_by_peer(CrossDiT(1, 4)), second)
    peer, ours = cached_by_peer(CrossDiT(1, 4)), compile_toy(CrossDiT(1, 4), **ALWAYS)
    run_all(peer, first)
    late = run_all(peer, second)
    # Without its pipeline and a number of steps, all is one image.
    assert stats_of_peer(peer).cached_steps == list(range(1, 2 * NUM_STEPS))
    assert min(errors(late, alone)) > WRONG_OUTPUT
    run_all(ours, first)
    mine = run_all(ours, second)
    assert hits_of_ours(ours) == 2 * list(range(1, NUM_STEPS))
    assert max(errors(mine, alone)) < SAME_OUTPUT


def test_a_pipeline_beside_one_that_is_cached():
    (tiny,) = [pipeline for pipeline in FAST_PIPELINES if pipeline.name == "flux"]
    all_but_two = list(range(2, tiny.num_steps))

    def quiet(pipe):
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def drawn_around(pipe, sibling):
        """What is drawn while the sibling, which nobody cached, draws after the fourth step."""

        def after_step(_pipe, step, _timestep, kwargs):
            if step == 3:
                sibling(**tiny.arguments(1))
            return kwargs

        return pipe(**tiny.arguments(0), callback_on_step_end=after_step)[0]

    peer, its_sibling = (quiet(FluxPeerPipeline(**tiny.build().components)) for _ in range(2))
    settings = {**ALWAYS, "max_warmup_steps": 2}
    cache_dit.enable_cache(peer, cache_config=cache_dit.DBCacheConfig(**settings))
    alone = peer(**tiny.arguments(0))[0]
    assert stats_of_peer(peer).cached_steps == all_but_two
    # It wraps the class: a call of any instance begins a new image of this one.
    disturbed = drawn_around(peer, its_sibling)
    assert stats_of_peer(peer).cached_steps == all_but_two[: tiny.num_steps - 4 - 2]
    assert relative_error(disturbed, alone) > WRONG_OUTPUT
    ours, sibling = quiet(tiny.build()), quiet(tiny.build())
    ours.transformer.compile(backend="cachedit", options={"inner_backend": "eager", **settings})
    assert relative_error(ours(**tiny.arguments(0))[0], alone) < SAME_OUTPUT
    assert relative_error(drawn_around(ours, sibling), alone) < SAME_OUTPUT
    assert hits_of_ours(ours) == 2 * all_but_two


def test_pruned_blocks_of_one_stream():
    peer = cached_by_peer(gated_dit(4), cache_dit.DBPruneConfig(**ALWAYS))
    steps = steps_of_image()
    with pytest.raises(TypeError, match="takes 2 positional arguments but 3 were given"):
        run_all(peer, steps)
    ours = compile_toy(gated_dit(4), rule="dbprune", **ALWAYS)
    run_all(ours, steps)
    assert dc.summary(ours).steps[-1].skipped == ((1, 2), (2, 3), (3, 4))


def test_blocks_of_two_lists_that_are_never_pruned():
    pruned = [{**ALWAYS, "non_prune_block_ids": [i]} for i in (2, 3)]
    ran, model, steps = [], TwoListDiT(4, 4), steps_of_image()
    for i, block in enumerate([*model.blocks, *model.single_blocks]):
        block.register_forward_hook(lambda *_args, i=i: ran.append(i))
    configs = [cache_dit.DBPruneConfig(**own) for own in pruned]
    cached_by_peer(
        model,
        cache_dit.DBPruneConfig(**ALWAYS),
        blocks=[model.blocks, model.single_blocks],
        forward_pattern=[Pattern.Pattern_1] * 2,
        params_modifiers=[cache_dit.ParamsModifier(cache_config=own) for own in configs],
    )
    run_all(model, steps[:2])
    # It keeps them by the number of blocks: the second list goes by the first one's.
    assert ran[8:] == [0, 2, 4, 6]
    ours, rules = TwoListDiT(4, 4), [{"rule": "dbprune", **own} for own in pruned]
    ours.compile(backend="cachedit", options={"inner_backend": "eager", "block_lists": rules})
    run_all(ours, steps[:2])
    skipped = [start for start, _ in dc.summary(ours).steps[-1].skipped]
    assert skipped == [1, 3, 5, 6]


def test_what_a_model_in_bfloat16_is_compared_by():
    steps = [{name: value.bfloat16() for name, value in step.items()} for step in steps_of_image()]
    residuals, plain = [], gated_dit(4).bfloat16()
    plain.blocks[0].register_forward_hook(
        lambda _block, args, output: residuals.append(output.double() - args[0].double())
    )
    run_all(plain, steps)
    # Both keep the first residual in the model's type.
    kept = residuals[0].bfloat16().double()
    exact = [((r - kept).abs().sum() / kept.abs().sum()).item() for r in residuals[1:]]

    def both_at(threshold):
        settings = {**ALWAYS, "residual_diff_threshold": threshold}
        peer = cached_by_peer(gated_dit(4).bfloat16(), cache_dit.DBCacheConfig(**settings))
        ours = compile_toy(gated_dit(4).bfloat16(), batch_rule="mean", **settings)
        for model in (peer, ours):
            run_all(model, steps)
        return stats_of_peer(peer), ours

    peer, ours = both_at(0.99)
    its = list(peer.residual_diffs.values())
    # It rounds the difference of the two, the means and their ratio.
    assert its == [torch.tensor(diff).bfloat16().item() for diff in its]
    assert [step.diff for step in dc.summary(ours).steps[1:]] == pytest.approx(exact, rel=1e-5)
    off, step = max((abs(its[i] / exact[i] - 1), i + 1) for i in range(len(exact)))
    assert off > 2e-3
    threshold = (its[step - 1] + exact[step - 1]) / 2
    peer, ours = both_at(threshold)
    assert (step in hits_of_ours(ours)) is (exact[step - 1] < threshold)
    assert (step in peer.cached_steps) is (exact[step - 1] > threshold)
