"""The same application on Ray Serve, whose replicas and autoscaling are Ray's own.

    client -> proxy of Ray -> a replica: the application, with a model and workers of its own

A replica joins once it is warm. It answers for all of them where a request may be another one's:
`DELETE /requests/ID` goes to each, and `/metrics` has what each counts, told apart by `replica`.
"""

import asyncio
import logging
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import ray
import torch
from fastapi import FastAPI
from pydantic import BaseModel, Field
from ray import serve

from dit_cachegraph.serving.api_key import API_KEY_VARIABLE, api_key_given
from dit_cachegraph.serving.app import create_app
from dit_cachegraph.serving.limits import Limits
from dit_cachegraph.serving.merged_metrics import merged
from dit_cachegraph.serving.node import Node
from dit_cachegraph.serving.run import address, log_to_stderr, studio_of
from dit_cachegraph.serving.studio import Studio

APPLICATION = "dit_cachegraph"
_LIMITS = Limits()
_OTHERS_SECONDS = 10.0

log = logging.getLogger("dit_cachegraph.serving")


class Replica(Node):
    """One of several. It takes requests once it is warm."""

    async def start(self) -> None:
        """Load the model, compile, and draw a first picture of each size.

        Raises:
            RuntimeError: the model can't be served.
        """
        await super().start()
        await asyncio.to_thread(self.pool.wait_until_warm)

    async def cancel(self, job_id: str) -> bool:
        return self.pool.cancel(job_id) or any(await _of_all("cancel_here", job_id))

    async def metrics(self) -> bytes:
        return merged("replica", dict(await _of_all("metrics_here")))

    async def own_metrics(self) -> bytes:
        """Of this replica alone."""
        return await super().metrics()


async def _of_all(method: str, *arguments: object) -> list:
    """What the method says on each replica; those that are lost meanwhile say nothing."""
    context = serve.get_replica_context()
    handle = serve.get_deployment_handle(context.deployment, context.app_name)
    told = await handle.broadcast(method, *arguments).results_async(
        timeout_s=_OTHERS_SECONDS, return_exceptions=True
    )
    return [answer for answer in told if not isinstance(answer, Exception)]


class Pictures:
    """A replica: `make_studio` makes what draws, where it runs."""

    def __init__(self, make_studio: Callable[[], Studio], num_workers: int) -> None:
        log_to_stderr()
        self._make_studio, self._num_workers = make_studio, num_workers
        self._app: FastAPI | None = None

    def __serve_build_asgi_app__(self) -> FastAPI:  # noqa: PLW3201  # Ray's own name for it
        self._app = create_app(
            self._make_studio(),
            limits=_LIMITS,
            num_workers=self._num_workers,
            api_key=api_key_given(),
            node_class=Replica,
        )
        return self._app

    @property
    def _node(self) -> Replica:
        assert self._app is not None, "Ray asks for it first"
        node: Replica = self._app.state.node
        return node

    async def cancel_here(self, job_id: str) -> bool:
        """End a request of this replica."""
        return self._node.pool.cancel(job_id)

    async def metrics_here(self) -> tuple[str, bytes]:
        """The name of this replica, and what it counts."""
        name = serve.get_replica_context().replica_id.unique_id
        return name, await self._node.own_metrics()


DEPLOYMENT: serve.Deployment = serve.deployment(
    name="Pictures",
    max_ongoing_requests=_LIMITS.max_connections,
    graceful_shutdown_timeout_s=_LIMITS.drain_seconds,
)(serve.ingress()(Pictures))


class Arguments(BaseModel, extra="forbid"):
    """What `args` of an application may say in Ray's configuration: as the options of
    `python -m dit_cachegraph serve`."""

    model: Path | None = None
    sizes: tuple[tuple[int, int], ...] = ()
    workers: int = Field(2, ge=1, le=64)


def build(args: Arguments) -> serve.Application:
    """The application, for `import_path` of a Serve configuration. How many replicas, and on what
    they run, is said there."""
    model, sizes = args.model, args.sizes
    return DEPLOYMENT.bind(lambda: studio_of(model, sizes), args.workers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicas:
    """From `smallest` to `largest`, of `num_workers` each. Between them Ray adds one where more
    requests are under way than there are workers, and takes it away again."""

    smallest: int
    largest: int
    num_workers: int
    num_gpus: int = 0

    def options(self) -> Mapping[str, object]:
        """As a deployment takes them. A worker has a core."""
        key = api_key_given()
        environment = {} if key is None else {API_KEY_VARIABLE: key}
        actor = {
            "num_cpus": self.num_workers,
            "num_gpus": self.num_gpus,
            "runtime_env": {"env_vars": environment},
        }
        if self.smallest == self.largest:
            return {"ray_actor_options": actor, "num_replicas": self.smallest}
        scaling = {
            "min_replicas": self.smallest,
            "max_replicas": self.largest,
            "target_ongoing_requests": self.num_workers,
        }
        return {"ray_actor_options": actor, "autoscaling_config": scaling}


def serve_on_ray(
    make_studio: Callable[[], Studio], replicas: Replicas, *, host: str, port: int
) -> None:
    """Serve until SIGTERM or SIGINT, on the Ray that this process uses, else on the cluster that
    RAY_ADDRESS names, else on one of this machine alone that ends with it.

    Raises:
        RuntimeError: no replica came up.
    """
    log_to_stderr()
    if not ray.is_initialized():
        ray.init()
    is_told_to_stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: is_told_to_stop.set())
    try:
        serve.start(http_options={"host": host, "port": port})
        deployment = DEPLOYMENT.options(**replicas.options())
        serve.run(deployment.bind(make_studio, replicas.num_workers), name=APPLICATION)
        log.info("%s", address(host, port))
        is_told_to_stop.wait()
    finally:
        serve.shutdown()
        ray.shutdown()


def num_gpus_of(model: Path | None) -> int:
    """What a replica needs here: the embedded model none."""
    return int(model is not None and torch.cuda.is_available())
