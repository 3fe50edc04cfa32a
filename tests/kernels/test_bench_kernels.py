import json
import sys

import pytest
import torch

from support.kernel_cases import ROOT, in_main_process

# The bench is no installed package.
sys.path.insert(0, str(ROOT))

from bench.kernels import __main__ as kernels
from bench.kernels.cases import (
    MODELS,
    OPS,
    OPS_WITH_ORDER,
    SMALLER_MODELS,
    Case,
    Selection,
    Sizes,
    cases_of,
)
from bench.kernels.check import errors_of
from bench.kernels.device import device_of
from bench.kernels.forms import CACHE_DIT, EAGER, OP, forms_of, formula_of, make_inputs
from bench.kernels.results import case_result, results_table, to_json
from bench.kernels.timing import COPY, make_sets

pytestmark = in_main_process

CPU = torch.device("cpu")
TINY = Sizes(3, 8)


def case_of(op, dtype="float32", order=None):
    return Case(op, "tiny", TINY, 2, dtype, order)


@pytest.mark.parametrize(
    ("op", "order", "num_passes"),
    [
        ("residual_diff", None, 3),
        ("residual_store", None, 3),
        ("residual_apply", None, 3),
        ("taylor_update", 0, 2),
        ("taylor_update", 4, 10),
        ("taylor_apply", 0, 3),
        ("taylor_apply", 4, 7),
        ("forecast_error", 0, 4),
        ("forecast_error", 1, 5),
        ("block_diff", None, 8),
    ],
)
def test_bytes_are_those_of_one_pass(op, order, num_passes):
    assert case_of(op, order=order).nbytes == num_passes * 2 * 3 * 8 * 4
    assert case_of(op, "bfloat16", order).nbytes == num_passes * 2 * 3 * 8 * 2


def test_by_default_each_model_batch_dtype_and_order_is_there_once():
    cases = list(cases_of(Selection(), MODELS))
    assert len(set(cases)) == len(cases) == 7 * (5 + 4 + 2) + 3 * 4
    assert {case.op for case in cases} == set(OPS)
    assert {case.model for case in cases} == set(MODELS)
    assert {case.batch for case in cases} == {1, 2, 8}
    assert {case.dtype for case in cases} == {"bfloat16", "float16", "float32"}
    assert {case.order for case in cases} == {None, 0, 1, 2, 3, 4}


def test_a_choice_is_measured_in_all_combinations():
    chosen = ["--ops", "taylor_apply,residual_diff", "--models", "flux", "--batches", "1,8"]
    parsed = kernels.parse_arguments([*chosen, "--orders", "0,4", "--device", "cpu"])
    assert [str(case) for case in cases_of(parsed.selection, parsed.models)] == [
        "residual_diff flux x 1, bfloat16",
        "taylor_apply flux x 1, bfloat16, order 0",
        "taylor_apply flux x 1, bfloat16, order 4",
        "residual_diff flux x 8, bfloat16",
        "taylor_apply flux x 8, bfloat16, order 0",
        "taylor_apply flux x 8, bfloat16, order 4",
    ]


def test_a_cpu_gets_smaller_sizes_unless_full_ones_are_asked_for():
    assert kernels.parse_arguments(["--device", "cpu"]).models is SMALLER_MODELS
    assert kernels.parse_arguments(["--device", "cpu", "--full-size"]).models is MODELS
    assert kernels.parse_arguments(["--device", "cuda"]).models is MODELS


@pytest.mark.parametrize(
    "arguments",
    [
        ["--ops", "residual"],
        ["--models", "flux,sd9"],
        ["--dtypes", "int8"],
        ["--orders", "5"],
        ["--batches", "0"],
        ["--rounds", "0"],
        ["--models", "wan", "--device", "cpu"],
    ],
)
def test_bad_arguments_are_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        kernels.parse_arguments(arguments)
    assert "error" in capsys.readouterr().err


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@torch.no_grad()
def test_each_form_gives_what_the_formula_says(op, dtype):
    case = case_of(op, dtype, 2 if op in OPS_WITH_ORDER else None)
    forms = forms_of(case, CPU, inner="eager")
    errors = errors_of(case, forms, make_inputs(case, CPU, seed=0))
    assert set(errors) == set(forms) >= {"op", "eager", "compiled"}
    assert (CACHE_DIT in forms) == (op == "residual_diff")


@pytest.mark.parametrize("op", OPS)
@torch.no_grad()
def test_a_wrong_form_is_refused(op):
    case = case_of(op, order=2 if op in OPS_WITH_ORDER else None)

    def wrong(*given):
        result = formula_of(case)(*given)
        return [x * 1.01 for x in result] if isinstance(result, tuple) else result * 1.01

    with pytest.raises(RuntimeError, match=f"{op} tiny x 2, .*: op is wrong by 0.0"):
        errors_of(case, {OP: wrong}, make_inputs(case, CPU, seed=0))


@torch.no_grad()
def test_sets_are_larger_than_the_cache_together():
    case = Case("residual_diff", "small", Sizes(256, 384), 1, "float32")
    sets = make_sets(case, CPU)
    assert sum(x.nbytes for given in sets for x in given) >= 3 * 2**25
    assert not torch.equal(sets[0][0], sets[1][0])


def test_shares_are_taken_round_by_round():
    case = case_of("residual_store")
    seconds = {COPY: [1.0, 2.0, 3.0], OP: [2.0, 4.0, 6.0], EAGER: [4.0, 4.0, 3.0]}
    result = case_result(case, seconds, {OP: 1e-7, EAGER: 0.0})
    assert result.of_copy[OP].median == 0.5
    assert result.of_copy[EAGER].median == 0.5
    assert COPY not in result.of_copy
    assert result.bandwidth(OP) == case.nbytes / 4.0
    header, row = results_table([result]).splitlines()
    assert header.split()[:3] == ["op", "model", "batch"]
    assert row.split()[:5] == ["residual_store", "tiny", "2", "float32", "-"]


@torch.no_grad()
def test_a_case_is_measured_and_written(tmp_path):
    result = kernels.measure_case(case_of("residual_diff"), CPU, num_rounds=2, inner="eager")
    assert set(result.seconds) == {"copy", "op", "eager", "compiled", "cache-dit"}
    assert result.errors[OP] < 1e-5
    assert all(spread.median > 0 for spread in result.seconds.values())
    kernels.write([result], kernels.this_machine(), device_of(CPU), tmp_path)
    told = json.loads((tmp_path / "kernels.json").read_text())
    assert set(told) == {"machine", "device", "cases"}
    assert told["cases"][0] == json.loads(json.dumps(to_json(result)))
    assert told["cases"][0]["case"]["num_bytes"] == result.case.nbytes
    rows = (tmp_path / "kernels.txt").read_text().splitlines()
    assert rows[-1].split()[:2] == ["residual_diff", "tiny"]
    assert (tmp_path / "kernels.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.gpu
@torch.no_grad()
def test_a_case_is_measured_on_a_gpu():
    case = Case("residual_apply", "small", Sizes(256, 384), 1, "bfloat16")
    result = kernels.measure_case(case, torch.device("cuda"), num_rounds=2)
    assert 0 < result.of_copy[OP].median < 2
