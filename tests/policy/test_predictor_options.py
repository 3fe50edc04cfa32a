"""Options of the predictors: what each takes, refuses with which sentence, and selects."""

import itertools

import pytest

from dit_cachegraph.config import resolve
from dit_cachegraph.exc import InvalidConfig
from dit_cachegraph.policy.catalog import PREDICTORS, options_of

NAN, INF = float("nan"), float("inf")
NOT_NUMBERS = [None, "1", [1], True, NAN, INF, -0.1]
NOT_INTS = [None, "1", 1.0, True, NAN]
BAD = {
    ("taylorseer", "taylorseer_order"): ([-1, 5, *NOT_INTS], "an integer from 0 to 4"),
    ("damped_line", "damped_line_least"): (NOT_NUMBERS, "a finite number of at least 0"),
    ("hicache", "hicache_order"): ([-1, 5, *NOT_INTS], "an integer from 0 to 4"),
    ("hicache", "hicache_sigma"): ([0, 1.01], "above 0 and at most 1"),
    ("chebyshev", "chebyshev_degree"): ([-1, 17, *NOT_INTS], "an integer from 0 to 16"),
    ("chebyshev", "chebyshev_ridge"): (NOT_NUMBERS, "a finite number of at least 0"),
    ("chebyshev", "chebyshev_history"): ([0, *NOT_INTS], "an integer of at least 1"),
    ("chebyshev", "chebyshev_num_steps"): ([0, *NOT_INTS], "an integer of at least 1"),
    ("dmd", "dmd_history"): ([3, *NOT_INTS], "an integer of at least 4"),
    ("dmd", "dmd_rank"): ([-1, *NOT_INTS], "an integer of at least 0"),
    ("dmd", "dmd_ridge"): (NOT_NUMBERS, "a finite number of at least 0"),
    ("dmd", "dmd_svd_precision"): (["", "exact", None], "one of 'low', 'medium', 'high'"),
}
FOR_ALL = {
    "calibrator_cache_type": ["", "Residual", None],
    "enable_encoder_calibrator": [None, 0, 1, "no"],
}
REFUSED = [(*key, value) for key, (values, _) in BAD.items() for value in values]
CALIBRATORS = sorted(set(PREDICTORS) - {"replay"})


@pytest.mark.parametrize(("name", "option", "value"), REFUSED, ids=repr)
def test_bad_values_are_refused_by_name_value_and_range(name, option, value):
    with pytest.raises(InvalidConfig) as raised:
        resolve({"predictor": name, option: value})
    assert str(raised.value) == f"{option} must be {BAD[name, option][1]}, got {value!r}"


def test_a_damped_line_keeps_no_more_than_a_line():
    with pytest.raises(InvalidConfig, match=r"^damped_line_least must be at most 1, got 1\.5$"):
        resolve({"damped_line_least": 1.5})
    assert resolve({"damped_line_least": 1.0}).predictor.name == "damped_line"


def test_every_number_of_every_predictor_is_in_the_table():
    named = {(n, f) for n, kind in PREDICTORS.items() for f in options_of(kind)}
    assert named - set(BAD) == set(itertools.product(CALIBRATORS, FOR_ALL))


@pytest.mark.parametrize("name", CALIBRATORS)
@pytest.mark.parametrize("option", sorted(FOR_ALL))
def test_options_of_all_are_refused_by_each(name, option):
    for value in FOR_ALL[option]:
        with pytest.raises(InvalidConfig, match=rf"^{option} must be .*, got "):
            resolve({"predictor": name, option: value})


def test_an_option_selects_its_predictor_and_a_shared_one_none():
    for name, option in BAD:
        default = getattr(PREDICTORS[name](), option)
        assert resolve({"rule": "even", option: default}).predictor == PREDICTORS[name]()
    for option, value in (("calibrator_cache_type", "residual"), ("dmd_rank", 1)):
        with pytest.raises(InvalidConfig, match=f"{option} is no option of the predictor 'replay'"):
            resolve({"predictor": "replay", option: value})
    with pytest.raises(InvalidConfig, match="several have this; name one of .*'foca'"):
        resolve({"rule": "even", "enable_encoder_calibrator": False})
    assert resolve({"predictor": "foca", "enable_encoder_calibrator": False}).predictor == (
        PREDICTORS["foca"](enable_encoder_calibrator=False)
    )
