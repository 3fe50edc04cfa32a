"""Prometheus metrics of a pipeline, through the package `prometheus-client`.

metrics = Metrics(pipe)
with dit_cachegraph.observe(metrics):
    ...
prometheus_client.generate_latest(metrics.registry)

They are in a registry of their own, or in the one that is given. Steps and requests are those of
all models of the process, from when it observes; what `summary` counts is that of the pipeline, and
asked for when somebody scrapes.
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from dit_cachegraph.api import summary
from dit_cachegraph.records import Record, StepRecord

_STEP_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_REQUEST_SECONDS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class Metrics:
    """A callback of `observe` that counts; `target` is a pipeline, or what `summary` takes."""

    def __init__(self, target: object, registry: CollectorRegistry | None = None) -> None:
        self.registry = own = CollectorRegistry() if registry is None else registry
        self._steps = Histogram(
            "dit_cachegraph_step_seconds",
            "Steps, by the host's clock, and what they decided: reused or computed.",
            ("model", "decision"),
            registry=own,
            buckets=_STEP_SECONDS,
        )
        self._blocks = Counter(
            "dit_cachegraph_blocks",
            "Blocks of the steps' models, by whether they ran or were skipped.",
            ("model", "outcome"),
            registry=own,
        )
        self._requests = Histogram(
            "dit_cachegraph_request_seconds",
            "Requests that were ended, from the making of their handle.",
            registry=own,
            buckets=_REQUEST_SECONDS,
        )
        own.register(_OfSummary(target))

    def __call__(self, record: Record) -> None:
        if isinstance(record, StepRecord):
            decision = "reused" if record.step.hit else "computed"
            self._steps.labels(record.model, decision).observe(record.seconds)
            num_skipped = record.num_blocks - record.num_blocks_run
            self._blocks.labels(record.model, "run").inc(record.num_blocks_run)
            self._blocks.labels(record.model, "skipped").inc(num_skipped)
        else:
            self._requests.observe(record.seconds)


class _OfSummary(Collector):
    """What `summary` has besides."""

    def __init__(self, target: object) -> None:
        self._target = target

    def describe(self) -> list[Metric]:
        """Nothing: the registry would call `collect` to know the names, before any model is."""
        return []

    def collect(self) -> Iterator[Metric]:
        report = summary(self._target)
        yield GaugeMetricFamily(
            "dit_cachegraph_state_bytes", "Held for later steps.", report.state_nbytes
        )
        for name, told, count in (
            ("calls_outside", "Calls that weren't cached.", report.num_outside),
            ("compiles", "Graphs that the models were compiled to.", report.num_compiles),
            ("evictions", "States that were freed under max_state_bytes.", report.num_evicted),
            ("expiries", "States that were freed after max_idle_seconds.", report.num_expired),
        ):
            yield CounterMetricFamily(f"dit_cachegraph_{name}", told, count)
