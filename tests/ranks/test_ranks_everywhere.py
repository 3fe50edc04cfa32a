"""As `test_ranks_agree.py`: every rule and predictor, other models, and a mesh of four ranks."""

from pathlib import Path
from typing import NamedTuple

import pytest

from dit_cachegraph.layers import PREDICTOR_KINDS, RULE_KINDS
from ranks.launch import Seen, run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(600)]
SECONDS = 560  # With no code of Inductor's at hand, g++ takes most of it.
MASK = [1, 1, 1, 1, 0, 0, 1, 0, 0, 0]
RULES: dict[str, Seen] = {
    "dbcache": {"residual_diff_threshold": 0.3, "max_warmup_steps": 1, "Fn_compute_blocks": 1},
    "dbcache, last blocks": {
        "residual_diff_threshold": 0.3,
        "max_warmup_steps": 1,
        "Fn_compute_blocks": 1,
        "Bn_compute_blocks": 1,
        "downsample_factor": 2,
    },
    "dbcache, hidden": {
        "l1_hidden_states_diff_threshold": 0.3,
        "max_warmup_steps": 1,
        "Fn_compute_blocks": 1,
    },
    "dbprune": {"rule": "dbprune", "residual_diff_threshold": 0.3, "max_warmup_steps": 1},
    "even": {"every": 2},
    "spread": {"compute_share": 0.5},
    "fixed": {"compute_mask": MASK},
    "magcache": {"mag_ratios": [1.0] * 10, "retention_ratio": 0.3},
    "easycache": {"easycache_threshold": 0.6},
    "teacache": {"teacache_coefficients": [1.0, 0.0], "teacache_threshold": 0.4},
    "error_control": {"error_tolerance": 1.0},
    "accumulated": {
        "residual_diff_threshold": 0.3,
        "max_warmup_steps": 1,
        "max_accumulated_residual_diff_threshold": 0.4,
    },
}
GATHER = "c10d::_allgather_base_"


class Gathers(NamedTuple):
    """Of a step that has something to compare with."""

    computed: int
    hit: int


GATHERS = {
    "dbcache": Gathers(2, 2),
    "dbcache, last blocks": Gathers(2, 2),
    "dbcache, hidden": Gathers(2, 2),
    "dbprune": Gathers(4, 4),  # Of four blocks the first runs, and each other one is looked at.
    "even": Gathers(1, 1),
    "spread": Gathers(1, 1),
    "fixed": Gathers(1, 1),
    "magcache": Gathers(1, 1),
    "easycache": Gathers(2, 2),
    "teacache": Gathers(2, 2),
    "error_control": Gathers(2, 1),
    "accumulated": Gathers(2, 2),
}
Ruled = tuple[int, dict[str, list[Seen]]]
PREDICTORS: dict[str, Seen] = {
    name: {"predictor": name, "compute_mask": MASK} for name in PREDICTOR_KINDS.by_name
}


def check(cases: list[Seen], folder: Path, num_ranks: int = 2) -> None:
    found = run_ranks(cases, folder, num_ranks, SECONDS)
    for case, ranks in zip(cases, found, strict=True):
        check_case(case, ranks)


def check_case(case: Seen, ranks: list[Seen]) -> None:
    for rank in ranks:
        shared, alone = rank["shared"], rank["alone"]
        assert rank["refusals"] == [], case
        assert [s["hit"] for s in shared] == [s["hit"] for s in alone], case
        assert {s["hit"] for s in shared} == {True, False}, case
        assert max(rank["errors"]) < case.get("tolerance", 1e-4), case


@pytest.fixture(scope="module", params=[1, 2], ids=["one pass", "two passes"])
def ruled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ruled:
    """What each rank saw, by rule: all run in one launch."""
    case = {"model": "flux", "parallel": "ulysses", "num_passes": request.param}
    cases = [{**case, "settings": settings, "is_counted": True} for settings in RULES.values()]
    found = run_ranks(cases, tmp_path_factory.mktemp("rules"), seconds=SECONDS)
    return request.param, dict(zip(RULES, found, strict=True))


@pytest.mark.parametrize("rule", RULES)
def test_every_rule(ruled: Ruled, rule: str) -> None:
    _, seen = ruled
    check_case({"settings": RULES[rule]}, seen[rule])


@pytest.mark.parametrize("rule", RULES)
def test_each_look_is_one_gather(ruled: Ruled, rule: str) -> None:
    """What the call shows of itself, then what the rule compares; the first step of a pass has
    nothing to compare with."""
    num_passes, seen = ruled
    for rank in seen[rule]:
        steps = zip(rank["shared"], rank["collectives"], strict=True)
        for number, (step, counted) in enumerate(steps):
            gathers = GATHERS[rule].hit if step["hit"] else GATHERS[rule].computed
            assert counted[GATHER] == (gathers if number >= num_passes else 1), number


@pytest.mark.parametrize("num_passes", [1, 2])
def test_every_predictor(tmp_path: Path, num_passes: int) -> None:
    """DMD and a damped line fit what each rank has of a sample by itself."""
    case = {"model": "flux", "parallel": "ulysses", "num_passes": num_passes}
    cases = [{**case, "settings": settings} for settings in PREDICTORS.values()]
    by_fit = [one for one in cases if one["settings"]["predictor"] in ("dmd", "damped_line")]
    fitted = [{**one, "tolerance": 0.05} for one in by_fit]
    check([one for one in cases if one not in by_fit] + fitted, tmp_path)


def test_a_spectrum_of_all_tokens(tmp_path: Path) -> None:
    """Ranks that share weights have them; those that share tokens are refused, also with a grid
    that the tokens of one would fill."""
    case = {"model": "flux", "settings": {"seacache_threshold": 0.4, "seacache_grid": [4, 4]}}
    check([{**case, "parallel": "mlps"}], tmp_path)
    part = {"seacache_threshold": 0.4, "seacache_grid": [2, 4]}
    refused = [
        {**case, "parallel": parallel, "settings": settings, "is_refused": True}
        for parallel, settings in (("ulysses", case["settings"]), ("ulysses", part), ("ring", part))
    ]
    for ranks in run_ranks(refused, tmp_path):
        for rank in ranks:
            assert "seacache filters over the grid of all tokens" in str(rank["refused"])


def test_a_size_that_ranks_cannot_divide(tmp_path: Path) -> None:
    """diffusers raises on all of them alike, and the next image is cached."""
    case = {"model": "flux", "parallel": "ulysses", "is_undivided": True}
    for rank in run_ranks([case], tmp_path)[0]:
        assert "must be divisible by mesh size" in str(rank["refused"])
        assert {step["hit"] for step in rank["steps"]} == {True, False}


@pytest.mark.parametrize("parallel", ["ulysses", "weights"])
def test_what_inductor_makes_of_it(tmp_path: Path, parallel: str) -> None:
    check([{"model": "flux", "parallel": parallel, "inner": "inductor"}], tmp_path)


def test_no_rule_is_left_out() -> None:
    named = {name.partition(",")[0] for name in RULES} - {"accumulated"}
    assert named == {*RULE_KINDS.by_name} - {"seacache", "block_lists"}


@pytest.mark.parametrize("name", ["wan", "qwen"])
def test_other_models(tmp_path: Path, name: str) -> None:
    """Their hooks split what the first block is given."""
    parallels = ("ulysses", "ring", "mlps", "weights")
    cases = [{"model": name, "parallel": parallel} for parallel in parallels]
    cases += [{"model": name, "parallel": "ulysses", "settings": {"error_tolerance": 1.0}}]
    check(cases, tmp_path)


@pytest.mark.parametrize("name", ["flux", "wan", "qwen"])
def test_a_mesh_of_four_ranks(tmp_path: Path, name: str) -> None:
    parallels = ("mlps and ulysses", "weights and ring", "ring and ulysses")
    check([{"model": name, "parallel": each} for each in parallels], tmp_path, num_ranks=4)


@pytest.mark.parametrize("name", ["flux", "wan", "qwen"])
def test_heads_over_weights_and_over_tokens(tmp_path: Path, name: str) -> None:
    """All weights of attention and MLP over two ranks, and Ulysses over two of these pairs."""
    case = {"model": f"{name} of four heads", "parallel": "weights and ulysses"}
    check([case, {**case, "settings": {"error_tolerance": 1.0}}], tmp_path, num_ranks=4)


@pytest.mark.parametrize("name", ["cogvideox", "cogvideox, rotary"])
def test_a_plan_of_the_caller(tmp_path: Path, name: str) -> None:
    """diffusers has none for CogVideoX."""
    parallels = ("a plan", "a plan in a ring")
    check([{"model": name, "parallel": parallel} for parallel in parallels], tmp_path)


def test_a_plan_without_an_attention_over_all_ranks_draws_something_else(tmp_path: Path) -> None:
    """What diffusers says nothing about: each rank attends to its own tokens."""
    (ranks,) = run_ranks([{"model": "cogvideox", "parallel": "a plan alone"}], tmp_path)
    assert min(rank["errors"][0] for rank in ranks) > 0.01
