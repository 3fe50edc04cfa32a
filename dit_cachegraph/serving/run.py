"""Runs the server on this machine, until it is told to stop."""

import logging
import os
from pathlib import Path

import uvicorn

from dit_cachegraph.serving.app import create_app
from dit_cachegraph.serving.embedded import EmbeddedStudio
from dit_cachegraph.serving.limits import Limits
from dit_cachegraph.serving.pipeline import PipelineStudio
from dit_cachegraph.serving.studio import Size, Studio

API_KEY_VARIABLE = "DIT_CACHEGRAPH_API_KEY"


def serve(
    model: Path | None,
    sizes: tuple[Size, ...],
    *,
    host: str,
    port: int,
    num_workers: int,
    inner_backend: str = "inductor",
) -> None:
    """Serve until SIGTERM or SIGINT; then what was taken is drawn to its end. Lines of the log go
    to stderr, one of JSON a request to stdout."""
    log_to_stderr()
    studio, limits = studio_of(model, sizes, inner_backend), Limits()
    api_key = os.environ.get(API_KEY_VARIABLE) or None
    app = create_app(studio, limits=limits, num_workers=num_workers, api_key=api_key)
    logging.getLogger("dit_cachegraph.serving").info("http://%s:%d/", host, port)
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        limit_concurrency=limits.max_connections,
        timeout_graceful_shutdown=round(limits.drain_seconds),
        server_header=False,
    )


def studio_of(
    model: Path | None, sizes: tuple[Size, ...], inner_backend: str = "inductor"
) -> Studio:
    """What draws with the pipeline in a folder, or with the embedded model."""
    if model is None:
        return EmbeddedStudio(inner_backend)
    return PipelineStudio(model, sizes, inner_backend)


def log_to_stderr() -> None:
    """All that the package has to say."""
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("dit_cachegraph").setLevel(logging.INFO)
