"""What the package logs; the logging plugin of pytest is off."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record.getMessage())


@contextmanager
def logged(level: int) -> Iterator[list[str]]:
    """The messages of this level and above, as they come."""
    logger, handler = logging.getLogger("dit_cachegraph"), _Lines()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield handler.found
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
