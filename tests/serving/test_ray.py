"""The same application on a Ray of this machine, with two replicas."""

import contextlib
import http.client
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

pytest.importorskip("ray")

import yaml
from ray.serve.schema import ServeDeploySchema

from dit_cachegraph.serving import on_ray
from dit_cachegraph.serving.api_key import API_KEY_VARIABLE
from dit_cachegraph.serving.ask import Ask
from support.serving_runs import PROMPT, Client, WatchedStudio, free_port, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]
LONG = 100  # steps: most of a second


@pytest.fixture(scope="module")
def server():
    """Its port and its process."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests")])
    given = {"PYTHONPATH": os.pathsep.join([paths, os.environ.get("PYTHONPATH", "")])}
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "support.ray_server", str(port), "2"],
        env={**os.environ, **given, "RAY_USAGE_STATS_ENABLED": "0"},
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: process.poll() is None and is_ready(Client(port)))
        yield port, psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)
    assert process.returncode == 0


@pytest.fixture
def client(server):
    client = Client(server[0])
    until(lambda: len(replicas(client)) == 2)
    return client


def is_ready(client):
    try:
        return client.ask("GET", "/readyz").status == 200
    except OSError:
        return False


def replicas(client):
    """Those that count."""
    return {key[-1] for key in client.metrics() if key[0] == "dit_cachegraph_waiting"}


def processes(server):
    return [p for p in server.children(recursive=True) if "ServeReplica" in " ".join(p.cmdline())]


def num_drawn(client):
    """By each replica."""
    name = ("dit_cachegraph_http_requests_total", "drawn")
    return [value for key, value in client.metrics().items() if key[:2] == name]


def test_pictures_are_those_that_are_drawn_alone_and_both_replicas_draw(client):
    studio = WatchedStudio()
    studio.load()
    expected = {seed: studio.alone(Ask(prompt=PROMPT, seed=seed)) for seed in range(4)}
    with ThreadPoolExecutor(4) as clients:
        answers = list(clients.map(lambda i: client.generate(seed=i % 4), range(16)))
    assert [answer.status for answer in answers] == [200] * 16
    assert all(answer.body == expected[i % 4] for i, answer in enumerate(answers))
    assert len(num_drawn(client)) == 2 and sum(num_drawn(client)) == 16


def test_a_request_is_cancelled_whichever_replica_has_it(client):
    for _ in range(4):  # One in sixteen would find its replica each time by chance.
        with client.stream(num_steps=LONG) as events:
            job_id = next(events)[1]["id"]
            assert client.ask("DELETE", f"/requests/{job_id}").status == 200
            assert list(events)[-1][1]["status"] == 409
    assert client.ask("DELETE", "/requests/none").status == 404


def test_what_is_refused_is_refused_here_too(client):
    answer = client.generate(num_steps=10_000)
    assert answer.status == 422 and "num_steps must be" in answer.json["error"]


def ends_well(events):
    """False where a stream ends without a last word."""
    names = []
    with contextlib.suppress(http.client.HTTPException, ConnectionError):
        names += [name for name, _ in events]
    return "done" in names


def waits_at_both(client):
    waiting = [value for key, value in client.metrics().items() if "waiting" in key[0]]
    return len(waiting) == 2 and min(waiting) > 0


def test_a_killed_replica_loses_its_own_requests_alone(server, client):
    with contextlib.ExitStack() as open_streams, ThreadPoolExecutor(8) as clients:
        streams = [open_streams.enter_context(client.stream(num_steps=LONG)) for _ in range(4)]
        plain = [clients.submit(client.generate, num_steps=LONG) for _ in range(4)]
        until(lambda: waits_at_both(client))
        victim, _ = processes(server[1])
        victim.kill()
        are_well = list(clients.map(ends_well, streams))
        statuses = [answer.result().status for answer in plain]
    assert set(statuses) <= {200, 500}
    num_lost = statuses.count(500) + are_well.count(False)
    assert 2 <= num_lost <= 6, (statuses, are_well)
    assert client.generate(seed=1).status == 200
    # Ray puts another in its place.
    until(lambda: len(processes(server[1])) == 2 and len(replicas(client)) == 2)


def test_the_configurations_of_the_page_are_those_that_ray_takes():
    page = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
    plain, of_kubernetes = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", page, re.DOTALL))
    for told in (plain, yaml.safe_load(of_kubernetes["spec"]["serveConfigV2"])):
        (application,) = ServeDeploySchema.model_validate(told).applications
        assert application.import_path == f"{on_ray.__name__}:{on_ray.build.__name__}"
        assert on_ray.Arguments.model_validate(application.args).sizes == ((1024, 1024),)
        (deployment,) = application.deployments
        assert deployment.name == on_ray.DEPLOYMENT.name


def test_an_argument_that_nobody_knows_is_refused():
    with pytest.raises(ValueError, match="wokers"):
        on_ray.Arguments.model_validate({"wokers": 2})


def test_replicas_come_and_go_by_rays_own_rule(monkeypatch):
    monkeypatch.setenv(API_KEY_VARIABLE, "a key")
    scaled = on_ray.Replicas(smallest=1, largest=4, num_workers=2).options()
    fixed = on_ray.Replicas(smallest=2, largest=2, num_workers=1, num_gpus=1).options()
    scaling = {"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 2}
    assert scaled["autoscaling_config"] == scaling and "num_replicas" not in scaled
    assert fixed["num_replicas"] == 2 and "autoscaling_config" not in fixed
    for options, needs in ((scaled, (2, 0)), (fixed, (1, 1))):
        deployment = on_ray.DEPLOYMENT.options(**options)  # Refuses what it doesn't know.
        actor = deployment.ray_actor_options
        assert (actor["num_cpus"], actor["num_gpus"]) == needs
        assert actor["runtime_env"]["env_vars"] == {API_KEY_VARIABLE: "a key"}
