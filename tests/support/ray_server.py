"""Serves the short model of these tests on a Ray of this machine: PORT REPLICAS, until SIGTERM."""

import sys

import ray

from dit_cachegraph.serving.on_ray import Replicas, serve_on_ray
from support.serving_runs import WatchedStudio

OBJECT_STORE_BYTES = 100_000_000

if __name__ == "__main__":
    port, num_replicas = map(int, sys.argv[1:])
    # Fewer cores than it asks for would let a replica wait for ever.
    ray.init(num_cpus=num_replicas, object_store_memory=OBJECT_STORE_BYTES, include_dashboard=False)
    replicas = Replicas(smallest=num_replicas, largest=num_replicas, num_workers=1)
    serve_on_ray(WatchedStudio, replicas, host="127.0.0.1", port=port)
