"""The server at many times its capacity, for a few seconds, by the bench's own client."""

import json
import os
import sys
from collections import Counter
from pathlib import Path

import pytest

# The bench is no installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import dit_cachegraph as dc
from bench.serve_load import LoadResult, ask, capacity, load, mixed_asks
from dit_cachegraph.serving.limits import Limits
from support.serving_runs import WatchedStudio, served, until

pytestmark = pytest.mark.e2e


def test_ten_times_its_capacity():
    studio = WatchedStudio()
    with served(studio, limits=Limits(max_waiting=4)) as client:
        client.wait_until_ready()
        asks = mixed_asks(6)
        expected = [(what, ask(client.port, what).body) for what in asks]
        rate = 10 * capacity(client.port, asks, 2)
        before = client.metrics()
        result = load(client.port, expected, rate=rate, seconds=3, process=os.getpid())
        assert set(result.statuses) == {200, 503}
        assert result.num_wrong == 0 and result.statuses[503] > result.statuses[200] > 0
        name, after = "dit_cachegraph_http_requests_total", client.metrics()
        assert after[name, "503"] == result.statuses[503]
        assert after[name, "drawn"] - before[name, "drawn"] == result.statuses[200]
        until(lambda: dc.summary(studio.pipe).state_nbytes == 0)
        assert client.ask("GET", "/readyz").status == 200


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, []),
        ({"statuses": Counter({200: 5, 500: 1})}, ["1 answers of 500"]),
        ({"num_wrong": 3}, ["3 pictures differ from those drawn alone"]),
        ({"seconds": []}, ["no picture was drawn"]),
        ({"memory": [100] * 8 + [120] * 8}, ["memory grew 1.20 times"]),
        ({"memory": [50, 50, *[100] * 6]}, []),
    ],
)
def test_faults_are_found(changes, told):
    well = {"statuses": Counter({200: 5, 503: 9}), "seconds": [1.0] * 5, "memory": [100] * 16}
    result = LoadResult(10.0, **{**well, **changes})
    assert result.faults() == told


def test_percentiles():
    result = LoadResult(10.0, Counter({200: 100}), seconds=[i / 100 for i in range(100, 0, -1)])
    assert json.loads(json.dumps(result.to_dict())) == {
        "asked_a_second": 10.0,
        "statuses": {"200": 100},
        "num_wrong": 0,
        "p50_seconds": 0.51,
        "p99_seconds": 1.0,
        "memory": [],
    }
