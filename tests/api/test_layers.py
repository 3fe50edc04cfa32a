"""Which rule and which predictor layers of settings add up to."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from dit_cachegraph.config import resolve
from dit_cachegraph.exc import InvalidConfig
from dit_cachegraph.layers import PREDICTOR_KINDS, RULE_KINDS, add_layer
from dit_cachegraph.policy import predictors, rules
from dit_cachegraph.policy.catalog import PREDICTORS, RULES
from dit_cachegraph.policy.predictor import Predictor
from dit_cachegraph.policy.predictors.damped_line import DampedLine
from dit_cachegraph.policy.predictors.replay import Replay
from dit_cachegraph.policy.predictors.taylorseer import TaylorSeer
from dit_cachegraph.policy.presets import PRESETS
from dit_cachegraph.policy.rule import Decision, Rule, Span
from dit_cachegraph.policy.rules.dbcache import DBCache
from dit_cachegraph.policy.rules.dbprune import DBPrune
from dit_cachegraph.policy.rules.error_control import ErrorControl
from dit_cachegraph.policy.rules.even import EvenSchedule
from dit_cachegraph.policy.rules.spread import SpreadSchedule

LINE, DRAWN = TaylorSeer(taylorseer_order=1), DampedLine(damped_line_least=0.1)


def paced(tolerance, **options):
    """As the presets are."""
    return ErrorControl(error_tolerance=tolerance, paced_over="noise", **options)


BALANCED = (paced(PRESETS["balanced"]["error_tolerance"]), LINE)


@dataclass(frozen=True)
class Own(Rule):
    """A rule of a user's: never reuses."""

    name: ClassVar[str] = "own"

    def spans(self, list_sizes):
        return (Span(0, sum(list_sizes)),)

    def decide(self, history, observation):
        return Decision(False, "never")


@dataclass(frozen=True)
class OwnPredictor(Predictor):
    """A predictor of a user's: half of what was."""

    name: ClassVar[str] = "half"

    def weights(self, steps, step):
        return (*[0.0] * (len(steps) - 1), 0.5)


CASES = [
    # A preset.
    ([], BALANCED),
    ([{"enabled": True}], BALANCED),
    ([{"preset": "balanced"}], BALANCED),
    ([{"preset": "fast"}], (paced(0.12), LINE)),
    ([{"preset": "fast", "max_gap": 3}], (paced(0.12, max_gap=3), LINE)),
    ([{"preset": "draft"}], (SpreadSchedule(compute_share=0.36), DRAWN)),
    ([{"preset": "draft"}, {"compute_share": 0.3}], (SpreadSchedule(compute_share=0.3), DRAWN)),
    ([{"preset": "draft"}, {"every": 4}], (EvenSchedule(every=4), Replay())),
    # An option of the preset's rule refines the preset, and its forecast stays.
    ([{"error_tolerance": 0.2}], (paced(0.2), LINE)),
    ([{"preset": "fast"}, {"max_gap": 3}],
     (paced(0.12, max_gap=3), LINE)),
    ([{"rule": "error_control", "error_tolerance": 0.2}],
     (ErrorControl(error_tolerance=0.2), Replay())),
    ([{"error_tolerance": 0.2}, {"residual_diff_threshold": 0.1}],
     (DBCache(residual_diff_threshold=0.1), Replay())),
    # An option of another rule: its own defaults, and nothing of the preset.
    ([{"residual_diff_threshold": 0.2}], (DBCache(residual_diff_threshold=0.2), Replay())),
    ([{"max_warmup_steps": 3}], (DBCache(max_warmup_steps=3), Replay())),
    ([{"every": 3}], (EvenSchedule(every=3), Replay())),
    ([{"every": 3, "max_warmup_steps": 5}], (EvenSchedule(every=3, max_warmup_steps=5), Replay())),
    ([{"non_prune_block_ids": [1]}], (DBPrune(non_prune_block_ids=(1,)), Replay())),
    # An option of a predictor leaves the rule.
    ([{"taylorseer_order": 2}], (BALANCED[0], TaylorSeer(taylorseer_order=2))),
    ([{"predictor": "replay"}], (BALANCED[0], Replay())),
    ([{"calibrator_cache_type": "hidden_states"}],
     (BALANCED[0], TaylorSeer(calibrator_cache_type="hidden_states"))),
    ([{"every": 3, "taylorseer_order": 2}], (EvenSchedule(every=3),
                                             TaylorSeer(taylorseer_order=2))),
    # By name, with options of its own.
    ([{"rule": "dbprune", "max_warmup_steps": 1}], (DBPrune(max_warmup_steps=1), Replay())),
    # A later layer.
    ([{"every": 3}, {"max_warmup_steps": 4}],
     (EvenSchedule(every=3, max_warmup_steps=4), Replay())),
    ([{"every": 3, "max_warmup_steps": 4}, {"residual_diff_threshold": 0.2}],
     (DBCache(residual_diff_threshold=0.2, max_warmup_steps=4), Replay())),
    ([{"residual_diff_threshold": 0.2, "taylorseer_order": 2}, {"preset": "balanced"}], BALANCED),
    ([{"preset": "fast"}, {"residual_diff_threshold": 0.2}],
     (DBCache(residual_diff_threshold=0.2), Replay())),
    ([{"every": 3}, {"rule": "dbcache"}, {"rule": "even"}], (EvenSchedule(every=3), Replay())),
    ([{"taylorseer_order": 2}, {"predictor": "replay"}], (BALANCED[0], Replay())),
    # Objects: ours can be changed name by name, a user's own not.
    ([{"rule": DBCache(max_warmup_steps=1)}, {"residual_diff_threshold": 0.3}],
     (DBCache(max_warmup_steps=1, residual_diff_threshold=0.3), Replay())),
    ([{"rule": Own(), "predictor": OwnPredictor()}], (Own(), OwnPredictor())),
    ([{"rule": Own()}, {"every": 4}], (EvenSchedule(every=4), Replay())),
]  # fmt: skip


@pytest.mark.parametrize(("layers", "expected"), CASES, ids=lambda x: str(x)[:60])
def test_layers_add_up_to(layers, expected):
    settings = resolve(*layers)
    assert (settings.rule, settings.predictor) == expected
    # The same from what `configure` keeps of them.
    kept = ()
    for layer in layers:
        kept = add_layer(kept, layer)
    settings = resolve(*map(dict, kept))
    assert (settings.rule, settings.predictor) == expected


@pytest.mark.parametrize(
    ("kinds", "folder", "shared"),
    [
        (RULE_KINDS, rules, {"accumulated"}),
        (PREDICTOR_KINDS, predictors, {"calibrator", "inner_products"}),
    ],
    ids=["rules", "predictors"],
)
def test_a_file_in_its_folder_is_found(kinds, folder, shared):
    (path,) = folder.__path__
    files = {file.stem for file in Path(path).glob("*.py")} - {"__init__", *shared}
    found = {kind.__module__ for kind in kinds.by_name.values()}
    assert found == {f"{folder.__name__}.{name}" for name in files}
    assert all(issubclass(kind, kinds.base) for kind in kinds.by_name.values())


def test_what_a_later_layer_covers_is_not_kept():
    kept = ()
    for threshold in range(50):
        kept = add_layer(kept, {"residual_diff_threshold": threshold})
        kept = add_layer(kept, {"every": 2, "max_warmup_steps": 3})
        kept = add_layer(kept, {"every": 3})
    assert kept == (
        (("residual_diff_threshold", 49),),
        (("every", 2), ("max_warmup_steps", 3)),
        (("every", 3),),
    )


@pytest.mark.parametrize(
    ("layer", "sentence"),
    [
        ({"preset": "best"}, "preset must be one of 'quality', 'balanced', 'fast', 'draft', got"),
        ({"rule": "dbcash"}, "rule must be one of .*'dbcache'.* got 'dbcash'"),
        ({"rule": 3}, "rule must be one of .* or a rule: 3"),
        ({"rule": Own}, "rule must be one of .* or a rule"),
        ({"predictor": Own()}, "predictor must be one of .* or a predictor"),
        ({"every": 2, "residual_diff_threshold": 0.1}, "no rule has all of the options every, res"),
        ({"rule": "dbcache", "every": 2}, "every is no option of the rule 'dbcache'"),
        ({"rule": "dbcache", "preset": "fast", "every": 2}, "every is no option of the rule"),
    ],
)
def test_refused(layer, sentence):
    with pytest.raises(InvalidConfig, match=sentence):
        resolve(layer)


def test_every_file_of_a_rule_or_predictor_is_found():
    assert {"dbcache", "dbprune", "error_control", "even"} <= set(RULES)
    assert {"replay", "taylorseer"} <= set(PREDICTORS)
    for kinds in (RULES, PREDICTORS):
        assert all(kind.name == name for name, kind in kinds.items())
