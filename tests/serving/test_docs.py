"""The server that `docs/serving.md` writes in a few lines."""

import asyncio
import contextlib
import json
import queue
import re
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import pytest
import torch
import uvicorn
from fastapi import FastAPI, Response
from pydantic import BaseModel, Field

import dit_cachegraph
from dit_cachegraph.demo.flux_scenes import SIDE_ARGUMENT, embed, load_pipeline, shipped_prompts
from dit_cachegraph.serving.twins import twin_of
from support.serving_runs import Client, shorten, until

pytestmark = pytest.mark.e2e
DOCS = Path(__file__).resolve().parents[2] / "docs"


def load():
    pipe = load_pipeline()
    shorten(pipe)
    return pipe


def arguments(job):
    embeddings = embed([job.prompt])
    return {
        "prompt_embeds": embeddings,
        "pooled_prompt_embeds": embeddings.mean(1),
        "height": SIDE_ARGUMENT,
        "width": SIDE_ARGUMENT,
        "guidance_scale": 0.0,
        "generator": torch.Generator().manual_seed(0),
        "output_type": "latent",
    }


def png(latents):
    """Nobody looks at it."""
    return latents.numpy().tobytes()


@pytest.fixture(scope="module")
def shown():
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "serving.md").read_text(), re.DOTALL)
    (code,) = [block for block in blocks if "painters" in block]
    names = {
        **{"asyncio": asyncio, "contextlib": contextlib, "queue": queue, "twin_of": twin_of},
        **{"uuid": uuid, "Literal": Literal, "BaseModel": BaseModel, "Field": Field},
        **{"FastAPI": FastAPI, "Response": Response, "dit_cachegraph": dit_cachegraph},
        **{"load": load, "arguments": arguments, "png": png, "FIRST": shipped_prompts()[0]},
        "__name__": "shown",
    }
    in_eager = 'backend="cachedit", options={"inner_backend": "eager"}'
    assert code.count('backend="cachedit"') == 1
    exec(code.replace('backend="cachedit"', in_eager), names)
    return names


def test_what_the_docs_show_draws_as_alone(shown):
    server = uvicorn.Server(uvicorn.Config(shown["app"], port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        client = Client(server.servers[0].sockets[0].getsockname()[1])
        jobs = [
            {"prompt": prompt, "preset": preset, "num_steps": num_steps}
            for prompt in shipped_prompts()[:2]
            for preset, num_steps in (("quality", 14), ("fast", 14), ("balanced", 6))
        ]

        def asked(job):
            body = json.dumps(job).encode()
            return client.ask("POST", "/generate", body, Content_Type="application/json")

        with ThreadPoolExecutor(4) as clients:
            answers = list(clients.map(asked, jobs))
        for job, answer in zip(jobs, answers, strict=True):
            assert answer.status == 200
            assert answer.body == shown["draw"](shown["Job"](**job))
        assert asked({"prompt": "a", "num_steps": 0}).status == 422
        report = dit_cachegraph.summary(shown["pipe"])
        assert report.num_compiles == 1 and report.num_hits > 0 and report.state_nbytes == 0
    finally:
        server.should_exit = True
        thread.join()
