"""What the server takes on, and what it refuses with a sentence."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on each request and on all of them together."""

    max_waiting: int = 32
    """Requests that wait for a worker; one more is told when to come again."""

    max_prompt_chars: int = 500

    max_steps: int = 100

    max_body_bytes: int = 16 * 1024

    head_seconds: float = 10.0
    """How long a client may take to send the head of a request."""

    body_seconds: float = 10.0
    """How long a client may take to send its body."""

    request_seconds: float = 300.0
    """How long a request may take, its waiting included."""

    drain_seconds: float = 60.0
    """How long requests may go on once the server is told to stop."""

    max_connections: int = 512


class Refused(Exception):
    """What is told to the client: a status of HTTP and a sentence; `retry_seconds`, where it may
    come again."""

    def __init__(self, status: int, sentence: str, retry_seconds: int | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.retry_seconds = status, sentence, retry_seconds
