# ruff: noqa: E402  # What is optional is looked for first.
"""Prometheus, JSON lines and spans made of what `observe` tells, read by their own parsers."""

import io
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import dit_cachegraph as dc
from support.toy_images import NUM_STEPS, compile_reading, denoise

prometheus_client = pytest.importorskip("prometheus_client")
pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from dit_cachegraph.observing.json_lines import JsonLines
from dit_cachegraph.observing.opentelemetry import Spans
from dit_cachegraph.observing.prometheus import Metrics


@pytest.fixture
def model():
    torch._dynamo.reset()
    return compile_reading()


def serve(model, key, **settings):
    handle = dc.request(key, **settings)
    with handle:
        for _ in denoise(model, key if isinstance(key, int) else 0):
            pass
    handle.end()
    return handle.report


def samples(metrics):
    text = prometheus_client.generate_latest(metrics.registry).decode()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_parse_and_equal_the_summary(model):
    """After requests of several settings at once, a call outside, evictions and an expiry."""
    metrics = Metrics(model)
    with dc.observe(metrics):
        serve(model, -1)
        dc.configure(model, max_state_bytes=1500)
        kinds = [{}, {"enabled": False}, {"residual_diff_threshold": 0.5}]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda i: serve(model, i, **kinds[i % 3]), range(12)))
        waits = denoise(model, 99)
        next(waits)
        dc.configure(model, max_idle_seconds=0)
        serve(model, 100)
        with torch.compiler.set_stance("force_eager"):
            serve(model, 101)
    found, report = samples(metrics), dc.summary(model)
    name, kind = "dit_cachegraph", "ReadingDiT"
    assert found[f"{name}_step_seconds_count", "reused", kind] == report.num_hits > 10
    assert found[f"{name}_step_seconds_count", "computed", kind] == report.num_computed
    assert found[f"{name}_blocks_total", kind, "run"] == report.num_blocks_run
    num_skipped = report.num_blocks - report.num_blocks_run
    assert found[f"{name}_blocks_total", kind, "skipped"] == num_skipped
    assert found[f"{name}_request_seconds_count",] == 15
    assert found[f"{name}_state_bytes",] == report.state_nbytes
    assert found[f"{name}_calls_outside_total",] == report.num_outside == NUM_STEPS
    assert found[f"{name}_compiles_total",] == report.num_compiles == 1
    assert found[f"{name}_evictions_total",] == report.num_evicted > 0
    # What waits, and what the request after it keeps from step to step.
    assert found[f"{name}_expiries_total",] == report.num_expired == 1 + NUM_STEPS - 1


def test_two_metrics_share_nothing_and_nothing_is_global(model):
    first, second = Metrics(model), Metrics(model)
    with dc.observe(first):
        serve(model, 0)
    assert samples(first)["dit_cachegraph_request_seconds_count",] == 1
    assert samples(second)["dit_cachegraph_request_seconds_count",] == 0
    assert b"dit_cachegraph" not in prometheus_client.generate_latest()


def test_one_line_a_request(model):
    file = io.StringIO()
    with dc.observe(JsonLines(file)):
        reports = [serve(model, key) for key in (0, "b", ("c", 1))]
    lines = [json.loads(line) for line in file.getvalue().splitlines()]
    assert [line["request"] for line in lines] == ["0", "b", "('c', 1)"]
    for line, report in zip(lines, reports, strict=True):
        assert line["num_hits"] == report.num_hits >= 2
        assert line["num_computed"] == report.num_computed
        assert line["share_of_work"] == report.share_of_work < 1
        assert line["reasons"] == [step.reason for step in report.steps]
        assert line["seconds"] > line["seconds_in_steps"] == report.seconds


def test_spans_are_inside_of_the_callers(model):
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    with dc.observe(Spans(tracer)), tracer.start_as_current_span("job") as job:
        report = serve(model, "a")
    *steps, request, _ = exporter.get_finished_spans()
    assert [span.name for span in steps] == ["dit_cachegraph.step"] * NUM_STEPS
    assert request.name == "dit_cachegraph.request"
    assert {s.parent.span_id for s in (*steps, request)} == {job.get_span_context().span_id}
    told = [span.attributes["dit_cachegraph.hit"] for span in steps]
    assert told == [step.hit for step in report.steps]
    assert request.attributes["dit_cachegraph.num_hits"] == report.num_hits
    assert request.start_time < steps[0].start_time < steps[-1].end_time < request.end_time
    shares = [span.attributes["dit_cachegraph.share_of_work"] for span in steps]
    assert sum(shares) / NUM_STEPS == report.share_of_work


def test_none_of_it_is_imported_unasked():
    script = "import sys, dit_cachegraph; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    unasked = ("prometheus_client", "opentelemetry", "fastapi", "dit_cachegraph.observing")
    assert "dit_cachegraph.observers" in done.stdout.split()
    assert not [name for name in done.stdout.split() if name.startswith(unasked)]
