"""A server as its endpoints see it, by itself or one of several that answer as one."""

import asyncio

from prometheus_client import CollectorRegistry, generate_latest

from dit_cachegraph.serving.pool import Pool


class Node:
    """A server by itself: what is asked for is here or nowhere."""

    def __init__(self, pool: Pool, registry: CollectorRegistry) -> None:
        self.pool, self.registry = pool, registry

    async def start(self) -> None:
        """Begin to load the model; returns as soon as requests may be taken."""
        self.pool.start()

    async def cancel(self, job_id: str) -> bool:
        """End a request that waits or is drawn; False if there is none of that name."""
        return self.pool.cancel(job_id)

    async def metrics(self) -> bytes:
        """What there is to count, as Prometheus' text."""
        return await asyncio.to_thread(generate_latest, self.registry)
