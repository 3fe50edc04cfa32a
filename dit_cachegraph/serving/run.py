"""Runs the server on this machine, until it is told to stop."""

import logging
import os
import sys
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from dit_cachegraph.serving.api_key import api_key_given
from dit_cachegraph.serving.app import create_app
from dit_cachegraph.serving.embedded import EmbeddedStudio
from dit_cachegraph.serving.head_timeout import timed_heads
from dit_cachegraph.serving.limits import Limits
from dit_cachegraph.serving.pipeline import PipelineStudio
from dit_cachegraph.serving.studio import Size, Studio


def serve(
    model: Path | None,
    sizes: tuple[Size, ...],
    *,
    host: str,
    port: int,
    num_workers: int,
    inner_backend: str = "inductor",
) -> None:
    """Serve until SIGTERM or SIGINT; then what was taken is drawn to its end, or nothing more at a
    second SIGINT. Lines of the log go to stderr, one of JSON a request to stdout.

    Raises:
        SystemExit: it can't listen there.
        ValueError: the API key is blank.
    """
    api_key = api_key_given()
    log_to_stderr()
    studio, limits = studio_of(model, sizes, inner_backend), Limits()
    app = create_app(studio, limits=limits, num_workers=num_workers, api_key=api_key)
    logging.getLogger("dit_cachegraph.serving").info("%s", address(host, port))
    try:
        _listen(app, limits, host, port)
    except SystemExit as ended:
        _end(app, ended.code)
        raise
    _end(app, 0)


def address(host: str, port: int) -> str:
    """Where a browser finds it."""
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def _listen(app: FastAPI, limits: Limits, host: str, port: int) -> None:
    uvicorn.run(
        app,
        host=host,
        port=port,
        http=timed_heads(limits.head_seconds),
        log_level="warning",
        access_log=False,
        limit_concurrency=limits.max_connections,
        timeout_graceful_shutdown=round(limits.drain_seconds),
        server_header=False,
    )


def _end(app: FastAPI, code: object) -> None:
    """Stop the workers; end the process here where one doesn't: a thread that is in torch while the
    interpreter ends would end it by SIGABRT."""
    if app.state.node.pool.stop():
        return
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code if isinstance(code, int) else 1)


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
