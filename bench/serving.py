"""Pictures a second with the shipped model, of many requests at the same settings.

    python -m bench.serving                     error_tolerance for hit rates near 30, 50 and 70 %
    python -m bench.serving --json FILE         keeps the figures

one at a time    each picture by itself
max              batches of 8 that begin together and decide as one, by the worst sample
per sample       batches of 8 with a request for each sample: the next picture takes the place of
                 each that is finished, so that they are at steps of their own

Wall time, one thread, in rounds that take turns; not meant for a machine that does other work. Each
picture of `per sample` is compared with the one that is drawn alone.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

import dit_cachegraph
from bench.common.machine import Machine, this_machine
from bench.common.table import table
from bench.common.threads import use_one_thread
from dit_cachegraph.demo.flux_scenes import DATA, TOKENS_A_SIDE, embed, load_model, shipped_prompts

BATCH = 8
ONE, MAX, PER_SAMPLE = "one at a time", "max", "per sample"
TOLERANCES = (0.03, 0.08, 0.25)
SHIFT = 3.0


@dataclass(frozen=True, slots=True)
class Row:
    """One way to draw at one setting, a median over rounds. `hit_rate`: the steps that a sample
    reuses; `worst_difference`: to the pictures that are drawn alone."""

    mode: str
    error_tolerance: float
    hit_rate: float
    pictures_a_second: float
    worst_difference: float | None


@dataclass(frozen=True, slots=True)
class Results:
    """All that was measured."""

    machine: Machine
    num_pictures: int
    num_steps: int
    inner_backend: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Drawn:
    """Pictures in their order, [1, tokens, channels] each, and the share of reused steps."""

    pictures: tuple[Tensor, ...]
    hit_rate: float


class Studio:
    """The shipped model, compiled once, and the pictures that are asked for."""

    def __init__(self, num_pictures: int, num_steps: int, inner_backend: str) -> None:
        from diffusers import FluxTransformer2DModel  # noqa: PLC0415  # slow to import

        self.model = load_model(FluxTransformer2DModel, DATA)
        self.model.compile(backend="cachedit", options={"inner_backend": inner_backend})
        words = embed([*shipped_prompts()] * -(-num_pictures // len(shipped_prompts())))
        self.texts = [words[i : i + 1] for i in range(num_pictures)]
        even = torch.linspace(1, 0, num_steps + 1)
        self.sigmas = SHIFT * even / (1 + (SHIFT - 1) * even)
        self._ids = _ids(self.texts[0])

    @property
    def num_steps(self) -> int:
        return len(self.sigmas) - 1

    def noise(self, picture: int) -> Tensor:
        generator = torch.Generator().manual_seed(picture)
        channels = self.model.config.in_channels
        return torch.randn(1, TOKENS_A_SIDE**2, channels, generator=generator)

    def step(self, latents: Tensor, texts: Tensor, steps: Sequence[int]) -> Tensor:
        """One Euler step of each sample, at a step of its own."""
        at = self.sigmas[list(steps)]
        after = self.sigmas[[step + 1 for step in steps]]
        velocity = self.model(
            hidden_states=latents,
            timestep=at,
            encoder_hidden_states=texts,
            pooled_projections=texts.mean(1),
            return_dict=False,
            **self._ids,
        )[0]
        return latents + (after - at)[:, None, None] * velocity

    def warm(self) -> None:
        """A batch of one, and one whose size is free."""
        for num in (1, 3, 2):
            latents = torch.cat([self.noise(i) for i in range(num)])
            self.step(latents, torch.cat(self.texts[:1] * num), [0] * num)


def _ids(text: Tensor) -> Mapping[str, Tensor]:
    side = torch.arange(TOKENS_A_SIDE)
    rows, columns = torch.meshgrid(side, side, indexing="ij")
    image = torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3).float()
    return {"img_ids": image, "txt_ids": torch.zeros(text.shape[1], 3)}


def draw_one_at_a_time(studio: Studio) -> Drawn:
    """Each picture as a request of its own."""
    pictures, rates = [], []
    for picture, text in enumerate(studio.texts):
        latents, handle = studio.noise(picture), dit_cachegraph.request(("one", picture))
        for step in range(studio.num_steps):
            with handle:
                latents = studio.step(latents, text, [step])
        pictures.append(latents)
        rates.append(handle.report.num_hits / studio.num_steps)
        handle.end()
    return Drawn(tuple(pictures), statistics.fmean(rates))


def draw_as_one(studio: Studio) -> Drawn:
    """Batches that begin together, each one request."""
    pictures: list[Tensor] = []
    rates = []
    for first in range(0, len(studio.texts), BATCH):
        texts = torch.cat(studio.texts[first : first + BATCH])
        latents = torch.cat([studio.noise(first + i) for i in range(len(texts))])
        handle = dit_cachegraph.request(("max", first))
        for step in range(studio.num_steps):
            with handle:
                latents = studio.step(latents, texts, [step] * len(texts))
        pictures += latents.split(1)
        rates.append(handle.report.num_hits / studio.num_steps)
        handle.end()
    return Drawn(tuple(pictures), statistics.fmean(rates))


@dataclass
class _Job:
    picture: int
    latents: Tensor
    handle: dit_cachegraph.request_handle.RequestHandle
    step: int = 0


def draw_per_sample(studio: Studio) -> Drawn:
    """A batch in which each finished picture makes room for the next, from staggered starts on."""
    waiting, jobs = iter(range(len(studio.texts))), list[_Job]()
    done: dict[int, Tensor] = {}
    num_hits = 0
    while len(done) < len(studio.texts):
        _join(studio, jobs, waiting)
        latents = torch.cat([job.latents for job in jobs])
        texts = torch.cat([studio.texts[job.picture] for job in jobs])
        with dit_cachegraph.requests([job.handle for job in jobs]):
            latents = studio.step(latents, texts, [job.step for job in jobs])
        for job, row in zip(jobs, latents.split(1), strict=True):
            job.latents, job.step = row, job.step + 1
        for job in [job for job in jobs if job.step == studio.num_steps]:
            jobs.remove(job)
            done[job.picture] = job.latents
            num_hits += job.handle.report.num_hits
            job.handle.end()
    pictures = tuple(done[picture] for picture in sorted(done))
    return Drawn(pictures, num_hits / (len(pictures) * studio.num_steps))


def _join(studio: Studio, jobs: list[_Job], waiting: Iterator[int]) -> None:
    """Let the next picture in where there is room: one a step, as requests come."""
    picture = next(waiting, None) if len(jobs) < BATCH else None
    if picture is not None:
        handle = dit_cachegraph.request(("sample", picture))
        jobs.append(_Job(picture, studio.noise(picture), handle))


MODES: Mapping[str, Callable[[Studio], Drawn]] = {
    ONE: draw_one_at_a_time,
    MAX: draw_as_one,
    PER_SAMPLE: draw_per_sample,
}


@torch.no_grad()
def measure(studio: Studio, tolerances: Sequence[float], num_rounds: int) -> tuple[Row, ...]:
    """A row for each way to draw at each setting."""
    studio.warm()
    rows: list[Row] = []
    for tolerance in tolerances:
        dit_cachegraph.configure(studio.model, error_tolerance=tolerance)
        for draw in MODES.values():  # Once unmeasured.
            draw(studio)
        seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
        drawn: dict[str, Drawn] = {}
        for _ in range(num_rounds):
            for mode, draw in MODES.items():
                start = time.perf_counter()
                drawn[mode] = draw(studio)
                seconds[mode].append(time.perf_counter() - start)
        rows += [_row(mode, tolerance, drawn, seconds[mode]) for mode in MODES]
    return tuple(rows)


def _row(mode: str, tolerance: float, drawn: Mapping[str, Drawn], seconds: Sequence[float]) -> Row:
    own, alone = drawn[mode].pictures, drawn[ONE].pictures
    differences = [(a - b).abs().max().item() for a, b in zip(own, alone, strict=True)]
    return Row(
        mode,
        tolerance,
        drawn[mode].hit_rate,
        len(own) / statistics.median(seconds),
        max(differences) if mode == PER_SAMPLE else None,
    )


def as_text(results: Results) -> str:
    """One line a row, with the throughput of `per sample` to that of the others."""
    rows = [["error_tolerance", "mode", "hits", "pictures/s", "per sample to it", "difference"]]
    for row in results.rows:
        own = next(
            other.pictures_a_second
            for other in results.rows
            if (other.mode, other.error_tolerance) == (PER_SAMPLE, row.error_tolerance)
        )
        ratio = "" if row.mode == PER_SAMPLE else f"{own / row.pictures_a_second:.2f}"
        difference = "" if row.worst_difference is None else f"{row.worst_difference:.1e}"
        told = [f"{row.error_tolerance:g}", row.mode, f"{row.hit_rate:.0%}"]
        rows.append([*told, f"{row.pictures_a_second:.2f}", ratio, difference])
    return f"{table(rows)}\n{results.num_pictures} pictures, {results.num_steps} steps; " + (
        f"{results.inner_backend}; {results.machine}"
    )


def main(arguments: Sequence[str]) -> None:
    """Measure, print, and keep what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench.serving")
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tolerances", type=float, nargs="+", default=TOLERANCES)
    parser.add_argument("--inner-backend", default="inductor")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE")
    given = parser.parse_args(arguments)
    use_one_thread()
    studio = Studio(given.pictures, given.steps, given.inner_backend)
    rows = measure(studio, given.tolerances, given.rounds)
    results = Results(this_machine(), given.pictures, given.steps, given.inner_backend, rows)
    sys.stdout.write(as_text(results) + "\n")
    if given.json is not None:
        given.json.write_text(json.dumps(asdict(results), indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
