"""Where cache-dit is right, ours decides the same at every step and draws the same picture.

A row is its settings, by short names that both have an option for. To add one, add a line; an
option of another kind (a calibrator, another rule) gets its short name in `settings_of`, and what
cache-dit calls it in `peer_config`.
"""

from collections import Counter

import pytest

pytest.importorskip("cache_dit", reason='cache-dit is not installed: pip install -e ".[peers]"')

import cache_dit
import torch

import dit_cachegraph as dc
from support.peer_runs import Ran, Sampling, our_pipeline, relative_error, run_ours, run_peer
from zoo.entries import ENTRIES

pytestmark = [pytest.mark.peers, pytest.mark.e2e]

MAX_ERROR = 1e-4
NUM_STEPS = 8

PLAIN = Sampling(NUM_STEPS)
# The same batch: another one would be compiled again.
GUIDED = Sampling(NUM_STEPS, guidance=5.0)


def settings_of(options):
    """The settings that the table's short names stand for."""
    names = {
        "F": "Fn_compute_blocks",
        "B": "Bn_compute_blocks",
        "R": "residual_diff_threshold",
        "W": "max_warmup_steps",
        "I": "warmup_interval",
        "M": "max_cached_steps",
        "MC": "max_continuous_cached_steps",
        "A": "max_accumulated_residual_diff_threshold",
        "mask": "steps_computation_mask",
        "policy": "steps_computation_policy",
        "T": "taylorseer_order",
        "kept": "calibrator_cache_type",
        "encoder": "enable_encoder_calibrator",
        "dynamic": "enable_dynamic_prune_threshold",
        "most": "max_dynamic_prune_threshold",
        "relax": "dynamic_prune_threshold_relax_ratio",
        "never": "non_prune_block_ids",
        "rule": "rule",
    }
    chosen = {"predictor": "taylorseer"} if "T" in options else {}
    given = {names[name]: value for name, value in {"R": 0.3, "W": 2, **options}.items()}
    return chosen | given


THRESHOLDS = [dict(R=r) for r in (0.0, 0.05, 0.15, 0.2, 0.25, 0.4, 0.5, 0.8, 1.0)] + [
    dict(R=1.0, W=1)
]
BLOCKS = [dict(F=f, B=b) for f, b in ((1, 1), (1, 10), (2, 0), (4, 2), (6, 0), (6, 3), (8, 3))]
BLOCKS += [dict(F=f, R=0.1) for f in (3, 7, 11)] + [dict(F=5, B=5, R=0.8)]
WARMUPS = [dict(W=w) for w in (0, 1, 3, 6, 20)]
INTERVALS = [dict(W=8, I=i) for i in (2, 3, 4, 10)] + [dict(W=5, I=2, R=1.0)]
CAPS = [dict(R=1.0, M=m) for m in (0, 1, 4)] + [dict(R=0.5, M=2)]
CAPS += [dict(R=1.0, MC=c) for c in (0, 1, 2, 3)] + [dict(R=0.8, MC=2, M=4)]
ACCUMULATED = [dict(R=0.5, A=a) for a in (0.2, 0.6, 1.2, 9.0)]
ACCUMULATED += [dict(R=0.8, A=1.5, MC=1), dict(R=1.0, A=0.3)]
PRESETS = {name: tuple(cache_dit.steps_mask(mask_policy=name, total_steps=NUM_STEPS)) for name in (
    "slow", "medium", "fast", "ultra")}  # fmt: skip
MASKS = [dict(mask=mask, policy="static", W=8) for mask in PRESETS.values()]
MASKS += [dict(mask=mask, policy="dynamic", W=8, R=0.3) for mask in PRESETS.values()]
MASKS += [dict(mask=PRESETS["ultra"], policy="dynamic", W=1, I=2, R=r) for r in (0.0, 1.0)]
MASKS += [dict(mask=PRESETS["ultra"], policy="dynamic", W=8, R=1.0, M=3, MC=1)]
MASKS += [dict(mask=PRESETS["fast"], policy="static", W=8, M=1, MC=1, F=2, B=3)]
MASKS += [dict(mask=(1, 0) * 4, policy="static", W=0)]

# Reuse from the fifth step on: earlier cache-dit has no derivative. Above order 1 it errs where
# gaps are uneven, so there only the first steps are computed.
TAYLOR = [dict(T=1, W=4, R=r) for r in (0.2, 0.4, 0.8, 1.0)] + [dict(T=0, W=4, R=0.8)]
TAYLOR += [dict(T=1, W=4, R=0.8, F=f, B=b) for f, b in ((1, 4), (4, 0), (6, 3))]
TAYLOR += [dict(T=1, W=4, R=1.0, MC=1), dict(T=1, W=5, R=0.8, M=2), dict(T=1, W=8, I=3, R=1.0)]
TAYLOR += [dict(T=1, W=4, R=0.8, kept="hidden_states")]
# What the text's stream leaves shows in the last blocks.
TAYLOR += [dict(T=1, W=4, R=0.8, B=4, kept="hidden_states", encoder=False)]
TAYLOR += [dict(T=1, mask=(1, 1, 1, 1, 0, 1, 0, 0), policy="static", W=4)]
TAYLOR += [dict(T=2, W=w, R=1.0) for w in (4, 5, 7)] + [dict(T=3, W=6, R=1.0)]

PRUNE = [dict(rule="dbprune", R=r) for r in (0.0, 0.05, 0.1, 0.2, 0.4)]
PRUNE += [dict(rule="dbprune", R=0.2, F=f, B=b) for f, b in ((4, 0), (1, 4), (6, 3), (11, 0))]
PRUNE += [dict(rule="dbprune", R=0.2, W=w) for w in (0, 4)] + [
    dict(rule="dbprune", W=6, I=2, R=0.1)
]
PRUNE += [dict(rule="dbprune", R=0.1, dynamic=True), dict(rule="dbprune", R=0.05, dynamic=True)]
PRUNE += [dict(rule="dbprune", R=0.05, dynamic=True, most=0.4, relax=2.0)]
PRUNE += [dict(rule="dbprune", R=0.2, never=[3, 9, 10])]
PRUNE += [dict(rule="dbprune", R=0.2, mask=PRESETS["medium"], policy="dynamic")]
PRUNE += [dict(rule="dbprune", R=0.2, T=1, W=4)]

UNGUIDED = [
    *TAYLOR,
    *PRUNE,
    *THRESHOLDS,
    *BLOCKS,
    *WARMUPS,
    *INTERVALS,
    *CAPS,
    *ACCUMULATED,
    *MASKS,
]
BRANCHES = [
    dict(R=0.2),
    dict(R=0.4),
    dict(R=0.8, MC=1),
    dict(R=0.8, A=0.6),
    dict(F=4, B=4, R=0.2),
    *MASKS[2:4],
    dict(T=1, W=4, R=0.4),
    dict(T=1, W=4, R=1.0, F=4, B=4),
    dict(rule="dbprune", R=0.1),
    dict(rule="dbprune", R=0.2, F=2, B=2),
]
TABLE = [(PLAIN, row) for row in UNGUIDED] + [(GUIDED, row) for row in BRANCHES]
TABLE += [(PLAIN, dict(T=1, W=4, R=0.8, encoder=False))]
# Those of every run: each kind of row, and of each kind every third. An image that is drawn by both
# takes a second.
SAMPLE = TABLE[::3]


def differences(ours: Ran, peer: Ran) -> list[str]:
    """What is not the same, each as half a sentence."""
    found = []
    if ours.hits != peer.hits:
        found.append(f"hits {ours.hits}, cache-dit's {peer.hits}")
    if ours.num_pruned != peer.num_pruned:
        found.append(f"pruned {ours.num_pruned}, cache-dit's {peer.num_pruned}")
    error = relative_error(ours.tokens, peer.tokens)
    if not error < MAX_ERROR:
        found.append(f"output off by {error:.2g}")
    for branch, (mine, its) in enumerate(zip(ours.diffs, peer.diffs, strict=True)):
        for step in mine.keys() & its.keys():
            if mine[step] != pytest.approx(its[step], rel=1e-3):
                found.append(f"diff {mine[step]} at {branch, step}, cache-dit's {its[step]}")
    return found


@pytest.mark.parametrize("table", [SAMPLE, pytest.param(TABLE, marks=pytest.mark.slow)], ids=len)
def test_decisions_and_pictures_are_the_same(table):
    pipe = our_pipeline()
    failed, num_hits, num_pruned = [], Counter(), set()
    for sampling, row in table:
        settings = settings_of(row)
        ours = run_ours(pipe, sampling, settings)
        found = differences(ours, run_peer(sampling, settings))
        failed += [f"{row}, guidance {sampling.guidance}: {'; '.join(found)}"] if found else []
        num_hits[sum(map(len, ours.hits))] += 1
        num_pruned |= set(ours.num_pruned[0])
    assert not failed, "\n" + "\n".join(failed)
    assert len(table) >= 35
    # The settings matter: images without a hit, and with any number up to all steps but the first.
    assert set(range(NUM_STEPS)) <= set(num_hits)
    assert len(num_pruned) >= 10
    assert dc.summary(pipe).graphs[0].num_blocks == 12


@pytest.mark.parametrize(("first", "last"), [(1, 0), (2, 1)])
def test_lists_of_which_the_second_runs_on_both_streams_in_one(first, last):
    """FLUX.2: what is compared in its single blocks is text and image, from where they are one."""
    (entry,) = [entry for entry in ENTRIES if entry.name == "flux2"]
    shared = {"residual_diff_threshold": 0.49, "max_warmup_steps": 1}
    second = {**shared, "Fn_compute_blocks": first, "Bn_compute_blocks": last}
    own = [{**shared, "Fn_compute_blocks": 1, "residual_diff_threshold": 0.5}, second]
    peer, ours = entry.build(2), entry.build(2)
    modifiers = [cache_dit.ParamsModifier(cache_config=cache_dit.DBCacheConfig(**o)) for o in own]
    adapter = cache_dit.BlockAdapter(
        transformer=peer,
        blocks=[getattr(peer, name) for name in entry.trunk],
        forward_pattern=[cache_dit.ForwardPattern.Pattern_1, cache_dit.ForwardPattern.Pattern_3],
        params_modifiers=modifiers,
    )
    cache_dit.enable_cache(adapter, cache_config=cache_dit.DBCacheConfig(num_inference_steps=8))
    dc.enable_cache(ours, params_modifiers=[dc.ParamsModifier(**settings) for settings in own])
    with torch.no_grad():
        for step in entry.steps(ours, [1 - 0.02 * i for i in range(NUM_STEPS)]):
            assert relative_error(ours(**step)[0], peer(**step)[0]) < MAX_ERROR
    _, doubles, singles = cache_dit.summary(peer, logging=False)
    seen = dc.summary(ours).steps
    for its, region in ((doubles, (1, 2)), (singles, (2 + first, 8 - last))):
        assert [step.step for step in seen if region in step.skipped] == its.cached_steps
        assert 2 < len(its.cached_steps) < NUM_STEPS - 1
    its_diffs = zip(doubles.residual_diffs.values(), singles.residual_diffs.values(), strict=True)
    means = [sum(pair) / 2 for pair in its_diffs]
    assert [step.diff for step in seen[1:]] == pytest.approx(means, rel=1e-3)
