import json
import sys
from pathlib import Path

import pytest
import torch

# The bench is no installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.common.machine import this_machine
from bench.common.spread import Spread, paired_ratios, spread_of
from bench.speed import __main__ as models
from bench.speed.cold import ColdResult
from bench.speed.engines import ENGINES
from bench.speed.flux import CPU, HOST, Depth, build_model, make_image, parse_depth
from bench.speed.host_parts import host_text, measure_host
from bench.speed.state import measure_state
from bench.speed.steps import measure_steps, relative_error

TINY = Depth(2, 2)


@pytest.fixture(autouse=True)
def _nothing_is_compiled_yet():
    torch.compiler.reset()


def cold_result(engine, python_seconds, children_seconds, num_distinct_segments=None):
    return ColdResult(
        engine, python_seconds, children_seconds, 9.0, 1.0, 0.5, 1, 0, 0, num_distinct_segments
    )


def test_without_arguments_all_engines_are_measured_on_the_host_preset():
    parsed = models.parse_arguments([])
    assert (parsed.preset, parsed.engines, parsed.depth) == (HOST, ENGINES, Depth(6, 12))
    assert parsed.measures_cold and parsed.measures_steps and not parsed.measures_state


def test_arguments_are_read():
    parsed = models.parse_arguments(
        ["--preset", "cpu", "--engines", "cachedit,plain", "--repeats", "7", "--json", "out.json"]
    )
    assert (parsed.preset, parsed.engines) == (CPU, ("plain", "cachedit"))
    assert (parsed.num_rounds, parsed.json_path) == (7, Path("out.json"))


def test_another_depth_measures_compile_time_alone():
    parsed = models.parse_arguments(["--depth", "19+38"])
    assert parsed.measures_cold and not parsed.measures_steps
    assert parsed.depth.num_blocks == 57


def test_state_is_measured_alone():
    parsed = models.parse_arguments(["--state"])
    assert parsed.measures_state and not parsed.measures_cold and not parsed.measures_steps


@pytest.mark.parametrize(
    "arguments",
    [["--engines", "fast"], ["--depth", "6"], ["--depth", "0+4"], ["--repeats", "-1"]],
)
def test_bad_arguments_are_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        models.parse_arguments(arguments)
    assert arguments[0] in capsys.readouterr().err


@pytest.mark.parametrize("text", ["6", "6+", "+12", "a+b", "0+1", "6+12+1"])
def test_a_depth_is_two_counts(text):
    with pytest.raises(ValueError, match="6\\+12"):
        parse_depth(text)


def test_spread_is_median_and_quartiles():
    assert spread_of([4.0, 1.0, 2.0, 3.0, 5.0]) == Spread(2.0, 3.0, 4.0)
    assert spread_of([7.0]) == Spread(7.0, 7.0, 7.0)
    assert f"{Spread(2.0, 3.0, 4.0):.1f}" == "3.0 (2.0 to 4.0)"


def test_ratios_are_taken_round_by_round():
    assert paired_ratios([1.0, 4.0, 9.0], [1.0, 2.0, 3.0]).median == 2.0


def test_relative_error_is_by_the_wanted_size():
    assert relative_error(torch.tensor([1.0, 3.0]), torch.tensor([1.0, -3.0])) == 1.5


def test_table_aligns_its_columns():
    assert models.table([["a", "bb"], ["ccc", "d"]]) == "a    bb\nccc   d"


def test_cold_table_compares_ours_with_plain():
    results = [cold_result("plain", 20.0, 10.0), cold_result("cachedit", 5.0, 10.0, 4)]
    text = models.cold_table(results)
    assert "cachedit to plain: 0.50x CPU-seconds, 0.25x Python alone" in text
    assert "loaded to" not in text
    assert " ".join(text.splitlines()[2].split()) == "cachedit 15.0 5.0 10.0 1.0 9.0 0.5 1 0 0 4"


def test_cold_table_compares_what_is_loaded_with_what_is_compiled():
    results = [cold_result("cachedit", 5.0, 10.0, 4), cold_result("loaded", 3.0, 0.0, 4)]
    assert "loaded to cachedit: 0.20x CPU-seconds, 0.60x Python" in models.cold_table(results)


def test_cold_table_compares_ours_with_the_peer():
    parsed = models.parse_arguments(["--engines", "cache-dit-compiled,cachedit"])
    assert parsed.engines == ("cachedit", "cache-dit-compiled")
    results = [cold_result("cachedit", 5.0, 10.0, 4), cold_result("cache-dit-compiled", 10.0, 10.0)]
    told = "cachedit to cache-dit-compiled: 0.75x CPU-seconds, 0.50x Python"
    assert told in models.cold_table(results)


def test_machine_is_named():
    machine = this_machine()
    assert machine.torch == torch.__version__
    assert str(machine).startswith(f"{machine.cpu}, {machine.num_cores} cores, torch ")


def test_an_image_moves_slowly_and_shares_its_conditioning():
    first, second, *_ = image = make_image(HOST)
    assert len(image) == 28
    assert first["encoder_hidden_states"] is second["encoder_hidden_states"]
    assert first["hidden_states"].shape == (1, 4, 16)
    assert relative_error(second["hidden_states"], first["hidden_states"]) < 0.1
    assert all(a["timestep"] > b["timestep"] for a, b in zip(image, image[1:], strict=False))


@pytest.mark.e2e
def test_no_weight_of_the_model_is_zero():
    assert all(parameter.any() for parameter in build_model(HOST, Depth(1, 1)).parameters())


@pytest.mark.e2e
@torch.no_grad()
def test_steps_are_checked_counted_and_told_as_json():
    result = measure_steps(HOST, TINY, ENGINES, num_rounds=3, inner="eager")
    ours = ["computed", "hit", "computed, frozen", "hit, frozen"]
    assert list(result.milliseconds) == ["eager", "plain", *ours]
    assert list(result.to_plain) == ["eager", *ours]
    assert result.errors["plain to eager"] <= 1e-5
    for suffix in ("", ", frozen"):
        assert result.errors[f"computed{suffix} to eager"] <= 1e-5
        assert result.errors[f"hit{suffix} to computed"] <= 1e-5
    for counts in result.compiled.values():
        assert (counts.num_graphs, counts.num_breaks, counts.num_recompiles) == (1, 0, 0)
    assert result.num_compiled_while_timing == 0
    assert result.num_distinct_segments == 4
    assert "compiled while timing: 0" in models.steps_table(result)
    results = models.Results(this_machine(), HOST, TINY, steps=result)
    told = json.loads(json.dumps(models.to_json(results)))
    assert set(told) == {"machine", "preset", "depth", "cold", "steps", "state", "cold_to_plain"}
    assert set(told["steps"]["milliseconds"]["hit"]) == {"low", "median", "high"}


@pytest.mark.e2e
@torch.no_grad()
def test_finding_the_state_is_a_share_of_a_step():
    result = measure_state(HOST, TINY, num_rounds=1, inner="eager")
    assert 0 < result.share.median < 1
    assert models.state_text(result).startswith("finding the state: ")


@pytest.mark.e2e
@torch.no_grad()
def test_the_parts_of_a_step_are_told_apart():
    guards, results = measure_host(TINY, num_rounds=2, is_frozen=True, inner="eager")
    assert list(results) == ["computed", "hit"]
    for result in results.values():
        assert guards.median < result.whole.median and result.driver.median < result.whole.median
        assert sum(part.share for part in result.parts.values()) == pytest.approx(1)
        named = {"driver", "weights", "whose call it is", "reading", "decision", "commit"}
        assert named <= set(result.parts)
    assert results["hit"].parts["driver"].num_calls < results["computed"].parts["driver"].num_calls
    assert host_text(guards, results).startswith("guards: ")
