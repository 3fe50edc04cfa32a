"""What the server itself counts, beside what the cache does."""

import contextlib
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from dit_cachegraph.serving.job import Done
from dit_cachegraph.serving.limits import Refused
from dit_cachegraph.serving.pool import Pool

_SECONDS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class Counts:
    """Requests by outcome, how long they took, and how many wait."""

    def __init__(self, pool: Pool, registry: CollectorRegistry) -> None:
        self._outcomes = Counter(
            "dit_cachegraph_http_requests",
            "Requests for a picture: drawn, left by their client, or a status of HTTP.",
            ("outcome",),
            registry=registry,
        )
        self._seconds = Histogram(
            "dit_cachegraph_http_seconds",
            "Requests from their taking to their end, waiting included.",
            registry=registry,
            buckets=_SECONDS,
        )
        waiting = Gauge("dit_cachegraph_waiting", "Requests that wait.", registry=registry)
        waiting.set_function(lambda: pool.num_waiting)

    @contextlib.contextmanager
    def refusals(self) -> Iterator[None]:
        """Count what is refused inside."""
        try:
            yield
        except Refused as refusal:
            self._outcomes.labels(str(refusal.status)).inc()
            raise

    def note_end(self, end: Done | Refused | None, seconds: float) -> None:
        """A request that was taken is over; without an end, since its client left."""
        outcome = "drawn" if isinstance(end, Done) else "left"
        self._outcomes.labels(str(end.status) if isinstance(end, Refused) else outcome).inc()
        self._seconds.observe(seconds)
