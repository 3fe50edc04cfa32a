"""The application: a pool, its endpoints, and who observes it, from start to stop."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from typing import TextIO

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException

from dit_cachegraph.api import observe
from dit_cachegraph.observing.json_lines import JsonLines
from dit_cachegraph.observing.prometheus import Metrics
from dit_cachegraph.serving.limits import Limits, Refused
from dit_cachegraph.serving.node import Node
from dit_cachegraph.serving.pool import Pool
from dit_cachegraph.serving.service import Service
from dit_cachegraph.serving.studio import Studio


def create_app(
    studio: Studio,
    *,
    limits: Limits | None = None,
    num_workers: int = 2,
    api_key: str | None = None,
    request_log: TextIO = sys.stdout,
    node_class: type[Node] = Node,
) -> FastAPI:
    """An application that draws with `studio`, which it loads when it starts. It writes a line of
    JSON to `request_log` for each request that ends. Its `state.node` is a `node_class`."""
    registry, observing = CollectorRegistry(), contextlib.ExitStack()

    def observe_all(target: object) -> None:
        observing.enter_context(observe(Metrics(target, registry)))
        observing.enter_context(observe(JsonLines(request_log)))

    pool = Pool(studio, limits or Limits(), num_workers, observe_all)
    node = node_class(pool, registry)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with observing:
            await node.start()
            yield
            await asyncio.to_thread(pool.drain)

    app = FastAPI(title="dit_cachegraph", lifespan=lifespan, openapi_url=None)
    app.state.node = node
    Service(node, api_key).add_to(app)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(HTTPException, _no_such_path)
    return app


async def _refused(_: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, Refused)
    headers = {} if refusal.retry_seconds is None else {"Retry-After": str(refusal.retry_seconds)}
    return JSONResponse({"error": refusal.sentence}, refusal.status, headers)


async def _no_such_path(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    told = f"{error.detail}: the paths are /, /generate, /requests/ID, /healthz, /readyz, /metrics"
    return JSONResponse({"error": told}, error.status_code, error.headers)
