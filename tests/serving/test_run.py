"""`python -m dit_cachegraph serve`, as a process: what it says, and how it stops."""

import contextlib
import importlib.util
import json
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from dit_cachegraph import cli
from dit_cachegraph.demo import needs
from dit_cachegraph.serving.api_key import API_KEY_VARIABLE, api_key_given
from dit_cachegraph.serving.run import address
from support.serving_runs import Client, free_port, until

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).resolve().parents[2]

# Draws with a studio of the tests; all else is what the command runs.
SCRIPT = """
import sys
sys.path.insert(0, "tests")
from dit_cachegraph.serving import run
from support import serving_runs
run.EmbeddedStudio = lambda inner_backend: getattr(serving_runs, sys.argv[2])()
from dit_cachegraph.cli import main
sys.exit(main(["serve", "--port", sys.argv[1], "--workers", "1"]))
"""


def answers(client):
    try:
        return client.ask("GET", "/readyz").status == 200
    except ConnectionRefusedError:
        return False


def listens(client):
    with contextlib.suppress(ConnectionRefusedError):
        return client.ask("GET", "/healthz").status == 200
    return False


@contextlib.contextmanager
def running(studio="WatchedStudio"):
    """The command as a process, and a client for it."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(port), studio],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield server, Client(port)
    finally:
        server.kill()


@pytest.mark.slow
def test_sigterm_draws_what_was_taken_and_ends():
    with running() as (server, client):
        until(lambda: answers(client))
        with client.stream(num_steps=60) as drawn, client.stream(num_steps=4) as waits:
            next(event for event in drawn if event[0] == "step")
            next(waits)
            server.send_signal(signal.SIGTERM)
            assert list(drawn)[-1][0] == list(waits)[-1][0] == "done"
        told, log = server.communicate(timeout=60)
    assert server.returncode in (0, -signal.SIGTERM), log
    lines = [json.loads(line) for line in told.splitlines()]
    assert [line["num_hits"] + line["num_computed"] for line in lines] == [28, 60, 4]
    assert lines[0]["request"] == "warm-up"
    assert f"http://127.0.0.1:{client.port}/" in log, log
    assert "segments of 4 blocks" in log, log
    assert "ready" in log and "Traceback" not in log


@pytest.mark.slow
def test_sigint_ends_it_while_it_compiles():
    """By itself: not by a thread that is in torch while the interpreter goes."""
    with running("BusyStudio") as (server, client):
        until(lambda: listens(client))
        server.send_signal(signal.SIGINT)
        _, log = server.communicate(timeout=60)
    assert server.returncode == 0, log
    assert "terminate called" not in log


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--size", "64x64"], "--size is for a pipeline that --model names"),
        (["--model", "nowhere"], "nowhere is no folder of a pipeline"),
    ],
)
def test_what_cant_be_served_is_said(capsys, arguments, sentence):
    assert cli.main(["serve", *arguments]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("blank", ["", " ", "\n"])
def test_an_api_key_that_is_blank_opens_nothing(capsys, monkeypatch, blank):
    """As where a secret came out empty; without the variable nobody is asked."""
    monkeypatch.setenv(API_KEY_VARIABLE, blank)
    for on_ray in ([], ["--ray"]) if importlib.util.find_spec("ray") else ([],):
        assert cli.main(["serve", *on_ray]) == 2
        assert f"{API_KEY_VARIABLE} is set and blank" in capsys.readouterr().err
    monkeypatch.setenv(API_KEY_VARIABLE, f"sesame{blank}")
    assert api_key_given() == "sesame"
    monkeypatch.delenv(API_KEY_VARIABLE)
    assert api_key_given() is None


@pytest.mark.parametrize("size", ["64", "64x", "x64", "64x64x64", "-1x5"])
def test_a_size_is_two_numbers(capsys, size):
    with pytest.raises(SystemExit):
        cli.main(["serve", "--model", "nowhere", f"--size={size}"])
    assert "must be WIDTHxHEIGHT" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "expected"),
    [("0.0.0.0", "http://0.0.0.0:80/"), ("here", "http://here:80/"), ("::1", "http://[::1]:80/")],
)
def test_the_address_is_one_that_a_browser_takes(host, expected):
    assert address(host, 80) == expected


def test_missing_packages_are_said(capsys, monkeypatch):
    monkeypatch.setattr(cli, "SERVER_PACKAGES", (*needs.SERVER_PACKAGES, "no_such_package"))
    assert cli.main(["serve"]) == 2
    said = capsys.readouterr().err
    assert "the server needs no_such_package" in said and "dit_cachegraph[serve]" in said


@pytest.mark.slow
def test_the_page_is_in_the_wheel(tmp_path):
    sources = tmp_path / "sources"  # A build leaves folders beside them.
    for name in ("dit_cachegraph", "kernels"):
        shutil.copytree(ROOT / name, sources / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", tmp_path, sources], check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    assert "dit_cachegraph/serving/page.html" in zipfile.ZipFile(wheel).namelist()


def test_replicas_are_for_ray(capsys):
    assert cli.main(["serve", "--replicas", "2"]) == 2
    assert "--replicas is for --ray" in capsys.readouterr().err


@pytest.mark.parametrize("replicas", ["0", "4-1", "1-", "-2", "two"])
def test_replicas_are_a_number_or_two(capsys, replicas):
    with pytest.raises(SystemExit):
        cli.main(["serve", "--ray", f"--replicas={replicas}"])
    assert "must be a number, or two as 1-4" in capsys.readouterr().err
