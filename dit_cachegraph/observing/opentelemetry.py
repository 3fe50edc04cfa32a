"""OpenTelemetry spans, through the package `opentelemetry-api`; who exports them is configured with
its SDK, and without one they cost next to nothing.

with dit_cachegraph.observe(Spans()):
    ...

A step is a span inside of the one that is current where the model is called; a request is one
inside of that in which its handle is ended.
"""

import time

from opentelemetry.trace import Tracer, get_tracer

from dit_cachegraph.records import Record, RequestRecord, StepRecord

Attributes = dict[str, str | int | float | bool]


class Spans:
    """A callback of `observe` that makes a span of each record, by `tracer` or that of the
    process."""

    def __init__(self, tracer: Tracer | None = None) -> None:
        self._tracer = get_tracer("dit_cachegraph") if tracer is None else tracer

    def __call__(self, record: Record) -> None:
        is_step = isinstance(record, StepRecord)
        end = time.time_ns()
        start = end - round(record.seconds * 1e9)
        name = "dit_cachegraph.step" if is_step else "dit_cachegraph.request"
        self._tracer.start_span(name, attributes=_attributes(record), start_time=start).end(end)


def _attributes(record: Record) -> Attributes:
    told: Attributes
    if isinstance(record, RequestRecord):
        report = record.report
        told = {
            "request": str(report.key),
            "num_hits": report.num_hits,
            "num_computed": report.num_computed,
            "freed_nbytes": record.freed_nbytes,
        }
        share = report.share_of_work
    else:
        told = {
            "model": record.model,
            "request": record.step.request,
            "step": record.step.step,
            "hit": record.step.hit,
            "reason": record.step.reason,
            "state_nbytes": record.state_nbytes,
        }
        share = record.num_blocks_run / record.num_blocks
    if share is not None:
        told["share_of_work"] = share
    return {f"dit_cachegraph.{name}": value for name, value in told.items()}
