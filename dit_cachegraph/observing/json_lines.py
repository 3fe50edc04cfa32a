"""One line of JSON a request that was ended.

with open("requests.jsonl", "a") as file, dit_cachegraph.observe(JsonLines(file)):
    ...
"""

import json
import threading
from typing import TextIO

from dit_cachegraph.records import Record, RequestRecord


class JsonLines:
    """A callback of `observe` that writes to a text file, and flushes each line."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._lock = threading.Lock()

    def __call__(self, record: Record) -> None:
        if not isinstance(record, RequestRecord):
            return
        line = json.dumps(as_dict(record))
        with self._lock:
            self._file.write(line + "\n")
            self._file.flush()


def as_dict(record: RequestRecord) -> dict[str, object]:
    """What is written of a request; `reasons` has one for each of its last thousand steps."""
    report = record.report
    return {
        "request": str(report.key),
        "num_hits": report.num_hits,
        "num_computed": report.num_computed,
        "share_of_work": report.share_of_work,
        "seconds": record.seconds,
        "seconds_in_steps": report.seconds,
        "freed_nbytes": record.freed_nbytes,
        "reasons": [step.reason for step in report.steps],
    }
