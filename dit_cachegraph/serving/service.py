"""The endpoints, over a pool of workers."""

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.types import Receive, Scope, Send

from dit_cachegraph.api import check
from dit_cachegraph.exc import NotCached
from dit_cachegraph.json_values import jsonable
from dit_cachegraph.serving.ask import parse
from dit_cachegraph.serving.body import read_body
from dit_cachegraph.serving.counts import Counts
from dit_cachegraph.serving.job import Done, Event, Job, Step, data_url, png_of
from dit_cachegraph.serving.limits import Refused
from dit_cachegraph.serving.node import Node
from dit_cachegraph.serving.page import PAGE, PAGE_HEADERS
from dit_cachegraph.serving.pool import Stage

_TICK_SECONDS = 1.0


class Service:
    """What answers. With an `api_key` all but the page and the probes ask for it."""

    def __init__(self, node: Node, api_key: str | None) -> None:
        self._node, self._pool, self._api_key = node, node.pool, api_key
        self._counts = Counts(node.pool, node.registry)

    def add_to(self, app: FastAPI) -> None:
        """Answer for these paths."""
        for method, path, answer in (
            ("GET", "/", self.page),
            ("GET", "/healthz", self.healthz),
            ("GET", "/readyz", self.readyz),
            ("GET", "/metrics", self.metrics),
            ("POST", "/generate", self.generate),
            ("DELETE", "/requests/{job_id}", self.cancel),
        ):
            methods = ["GET", "HEAD"] if method == "GET" else [method]
            app.add_api_route(path, answer, methods=methods, response_model=None)

    async def page(self) -> Response:
        """The page."""
        return HTMLResponse(PAGE, headers=PAGE_HEADERS)

    async def healthz(self) -> Response:
        """Alive."""
        return JSONResponse({"alive": True})

    async def readyz(self) -> Response:
        """200 once it is warm, and as long as the last call was cached; else 503 with why not."""
        pool = self._pool
        told = {"stage": pool.stage.value, "seconds": round(pool.seconds, 1)}
        why = pool.failure or pool.stage.value
        if pool.stage is Stage.READY:
            try:
                await asyncio.to_thread(check, pool.target)
            except NotCached as refusal:
                why = str(refusal)
            else:
                return JSONResponse({"ready": True, **told})
        return JSONResponse({"ready": False, **told, "error": why}, 503)

    async def metrics(self, request: Request) -> Response:
        """Prometheus' text."""
        self._check_key(request)
        return Response(await self._node.metrics(), media_type=CONTENT_TYPE_LATEST)

    async def cancel(self, job_id: str, request: Request) -> Response:
        """End a request that waits or is drawn."""
        self._check_key(request)
        if not await self._node.cancel(job_id):
            raise Refused(404, "no request of that id is under way")
        return JSONResponse({"cancelled": job_id})

    async def generate(self, request: Request) -> Response:
        """A PNG; or, with `stream`, events while it is drawn."""
        with self._counts.refusals():
            self._check_key(request)
            ask = parse(await read_body(request, self._pool.limits), self._pool.limits)
            studio = self._pool.studio
            why_not = studio.why_not(ask)
            if why_not is not None:
                raise Refused(422, why_not)
            job = Job(ask, asyncio.get_running_loop(), studio.num_calls_of(ask))
            num_before = self._pool.submit(job)
        if ask.stream:
            events = self._stream(job, num_before)
            headers = {"X-Request-Id": job.id, "Cache-Control": "no-store"}
            return _Events(events, headers, lambda: self._pool.cancel(job.id))
        return await self._picture(job, request)

    async def _picture(self, job: Job, request: Request) -> Response:
        """The picture of a job, whose client may go away."""
        finished = asyncio.ensure_future(self._finished(job))
        gone = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait((finished, gone), return_when=asyncio.FIRST_COMPLETED)
            if not finished.done():
                raise Refused(499, "the client is gone")
            event = finished.result()
        finally:
            finished.cancel()
            gone.cancel()
            self._pool.cancel(job.id)  # Where its events were never asked for, too.
        if isinstance(event, Refused):
            raise event
        return Response(event.png, media_type="image/png", headers=_headers(job, event))

    async def _finished(self, job: Job) -> Done | Refused:
        async with contextlib.aclosing(self._events(job)) as events:
            async for event in events:
                if isinstance(event, Done | Refused):
                    return event
        raise AssertionError("a job ends with one of these")

    async def _events(self, job: Job) -> AsyncGenerator[Event | None, None]:
        """The events of a job to its end, None where a second passes without."""
        began, end = time.monotonic(), None
        try:
            while end is None:
                event = await self._next_event(job, began)
                if isinstance(event, Done | Refused):
                    end = event
                else:
                    yield event
        finally:
            self._pool.cancel(job.id)
            self._counts.note_end(end, time.monotonic() - began)
        yield end

    async def _next_event(self, job: Job, began: float) -> Event | None:
        may_take = self._pool.limits.request_seconds
        left = began + may_take - time.monotonic()
        if left <= 0:
            told = f"it wasn't drawn within {may_take:g} s: come again"
            return Refused(503, told, max(1, round(may_take)))
        try:
            return await asyncio.wait_for(job.events.get(), min(_TICK_SECONDS, left))
        except asyncio.TimeoutError:
            return None

    async def _stream(self, job: Job, num_before: int) -> AsyncIterator[str]:
        """Server-sent events: `queued`, `waiting`, `step`, and at last `done` or `error`."""
        yield _sent("queued", {"id": job.id, "num_before": num_before})
        async with contextlib.aclosing(self._events(job)) as events:
            async for event in events:
                yield self._told(event)

    def _told(self, event: Event | None) -> str:
        if isinstance(event, Step):
            return _sent("step", _step(event))
        if isinstance(event, Done):
            return _sent("done", {"picture": data_url(event.png), **_counts(event)})
        if isinstance(event, Refused):
            return _sent("error", {"error": event.sentence, "status": event.status})
        pool = self._pool
        told = {"stage": pool.stage.value, "seconds": round(pool.seconds), "num": pool.num_waiting}
        return _sent("waiting", told)

    def _check_key(self, request: Request) -> None:
        if self._api_key is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        # A header's bytes are read as Latin-1, and the environment's as UTF-8.
        sent = given.strip().encode("latin-1")
        is_right = secrets.compare_digest(sent, self._api_key.encode(errors="surrogateescape"))
        if scheme.lower() != "bearer" or not is_right:
            raise Refused(401, "give the API key as `Authorization: Bearer KEY`")


class _Events(StreamingResponse):
    """Server-sent events. `end` is called when it is over, also where the client left before the
    first was asked for: then not a line of what makes `events` runs."""

    def __init__(
        self, events: AsyncIterator[str], headers: Mapping[str, str], end: Callable[[], object]
    ) -> None:
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._end()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _headers(job: Job, done: Done) -> dict[str, str]:
    return {
        "X-Request-Id": job.id,
        "X-Steps-Reused": str(done.report.num_hits),
        "X-Steps-Computed": str(done.report.num_computed),
        "X-Share-Of-Work": f"{done.report.share_of_work or 0:.4f}",
    }


def _step(event: Step) -> dict[str, object]:
    preview = event.preview
    return {
        "step": preview.step,
        "num_steps": preview.num_steps,
        "preview": None if preview.picture is None else data_url(png_of(preview.picture)),
        "decisions": [
            {"hit": d.hit, "reason": d.reason, "diff": d.diff, "error": d.observed_error}
            for d in event.decisions
        ],
    }


def _counts(done: Done) -> dict[str, object]:
    report = done.report
    return {
        "num_hits": report.num_hits,
        "num_computed": report.num_computed,
        "share_of_work": report.share_of_work,
        "seconds": report.seconds,
    }


def _sent(name: str, data: Mapping[str, object]) -> str:
    return f"event: {name}\ndata: {json.dumps(jsonable(dict(data)))}\n\n"
