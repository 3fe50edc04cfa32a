"""Pictures a second with the shipped model, of many requests at the same settings.

    python -m bench.serving                     hit rates near 30, 50 and 70 %
    python -m bench.serving --json FILE         keeps the figures

one at a time    each picture by itself
max              batches of 8 that begin together and decide as one, by the worst sample; where
                 pictures have fewer steps than others they leave, and what is left begins anew
per sample       batches of 8 with a request for each sample: the next picture takes the place of
                 each that is finished, so that they are at steps of their own

Two kinds of traffic: `alike`, all of 40 steps; `mixed`, of 20, 40 and 60. First each picture of
`per sample` is compared with the one that is drawn alone, and it ends with 1 where they differ.
Then the ways take turns, in rounds. Wall and CPU time, one thread; for the wall's, a machine that
does nothing else.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

import dit_cachegraph
from bench.common.machine import Machine, this_machine
from bench.common.spread import Spread, paired_ratios, spread_of
from bench.common.table import table
from bench.common.threads import use_one_thread
from dit_cachegraph.demo.flux_scenes import DATA, TOKENS_A_SIDE, embed, load_model, shipped_prompts

BATCH = 8
ONE, MAX, PER_SAMPLE = "one at a time", "max", "per sample"
TOLERANCES = (0.0055, 0.02, 0.2)
SHIFT = 3.0
TRAFFIC: Mapping[str, tuple[float, ...]] = {"alike": (1.0,), "mixed": (0.5, 1.0, 1.5)}
MAY_DIFFER = 1e-3


@dataclass(frozen=True, slots=True)
class Row:
    """One way to draw at one setting. `hit_rate`: the steps that a sample reuses; `to_it`: the
    pictures a second of `per sample` to those of this one, of the same rounds."""

    traffic: str
    mode: str
    error_tolerance: float
    hit_rate: float
    pictures_a_second: Spread
    cpu_seconds_a_picture: Spread
    to_it: Spread
    cpu_to_it: Spread


@dataclass(frozen=True, slots=True)
class Results:
    """All that was measured."""

    machine: Machine
    num_pictures: int
    num_steps: int
    num_rounds: int
    inner_backend: str
    worst_difference: float
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Drawn:
    """Pictures in their order, [1, tokens, channels] each, and the share of reused steps."""

    pictures: tuple[Tensor, ...]
    hit_rate: float


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """What is asked for: a text [1, words, channels], and the noise level of each step."""

    number: int
    text: Tensor
    sigmas: Tensor

    @property
    def num_steps(self) -> int:
        return len(self.sigmas) - 1


class Studio:
    """The shipped model, compiled once, and the pictures that are asked for."""

    def __init__(self, num_pictures: int, num_steps: int, inner_backend: str) -> None:
        from diffusers import FluxTransformer2DModel  # noqa: PLC0415  # slow to import

        self.model = load_model(FluxTransformer2DModel, DATA)
        self.model.compile(backend="cachedit", options={"inner_backend": inner_backend})
        words = embed([*shipped_prompts()] * -(-num_pictures // len(shipped_prompts())))
        self._texts = [words[i : i + 1] for i in range(num_pictures)]
        self._num_steps, self._ids = num_steps, _ids(self._texts[0])
        self.pictures: tuple[Picture, ...] = ()
        self.ask_for(TRAFFIC["alike"])

    def ask_for(self, shares: Sequence[float]) -> None:
        """The same pictures, of so many times the usual number of steps, in turn."""
        levels = [_sigmas(round(self._num_steps * share)) for share in shares]
        self.pictures = tuple(
            [Picture(i, text, levels[i % len(levels)]) for i, text in enumerate(self._texts)]
        )

    def noise(self, picture: Picture) -> Tensor:
        generator = torch.Generator().manual_seed(picture.number)
        channels = self.model.config.in_channels
        return torch.randn(1, TOKENS_A_SIDE**2, channels, generator=generator)

    def step(self, latents: Tensor, pictures: Sequence[Picture], steps: Sequence[int]) -> Tensor:
        """One Euler step of each sample, at a step of its own."""
        pairs = list(zip(pictures, steps, strict=True))
        at = torch.stack([picture.sigmas[step] for picture, step in pairs])
        after = torch.stack([picture.sigmas[step + 1] for picture, step in pairs])
        texts = torch.cat([picture.text for picture in pictures])
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
            latents = torch.cat([self.noise(self.pictures[i]) for i in range(num)])
            self.step(latents, self.pictures[:1] * num, [0] * num)


def _sigmas(num_steps: int) -> Tensor:
    even = torch.linspace(1, 0, num_steps + 1)
    return SHIFT * even / (1 + (SHIFT - 1) * even)


def _ids(text: Tensor) -> Mapping[str, Tensor]:
    side = torch.arange(TOKENS_A_SIDE)
    rows, columns = torch.meshgrid(side, side, indexing="ij")
    image = torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3).float()
    return {"img_ids": image, "txt_ids": torch.zeros(text.shape[1], 3)}


def draw_one_at_a_time(studio: Studio) -> Drawn:
    """Each picture as a request of its own."""
    pictures, num_hits = [], 0
    for picture in studio.pictures:
        latents, handle = studio.noise(picture), dit_cachegraph.request(("one", picture.number))
        for step in range(picture.num_steps):
            with handle:
                latents = studio.step(latents, [picture], [step])
        pictures.append(latents)
        num_hits += handle.report.num_hits
        handle.end()
    return Drawn(tuple(pictures), num_hits / _num_steps(studio))


def draw_as_one(studio: Studio) -> Drawn:
    """Batches that begin together, each one request."""
    done: dict[int, Tensor] = {}
    num_hits = 0
    for first in range(0, len(studio.pictures), BATCH):
        handle = dit_cachegraph.request(("max", first))
        alive = list(studio.pictures[first : first + BATCH])
        latents = torch.cat([studio.noise(picture) for picture in alive])
        step, sizes = 0, list[int]()
        while alive:
            with handle:
                latents = studio.step(latents, alive, [step] * len(alive))
            step, sizes = step + 1, [*sizes, len(alive)]
            rows = dict(zip(alive, latents.split(1), strict=True))
            done |= {p.number: row for p, row in rows.items() if p.num_steps == step}
            alive = [picture for picture in alive if picture.num_steps > step]
            if 0 < len(alive) < len(rows):
                latents = torch.cat([rows[picture] for picture in alive])
        decided = zip(handle.report.steps, sizes, strict=True)
        num_hits += sum(num for report, num in decided if report.hit)
        handle.end()
    return Drawn(tuple(done[i] for i in sorted(done)), num_hits / _num_steps(studio))


def _num_steps(studio: Studio) -> int:
    return sum(picture.num_steps for picture in studio.pictures)


@dataclass
class _Job:
    picture: Picture
    latents: Tensor
    handle: dit_cachegraph.request_handle.RequestHandle
    step: int = 0


def draw_per_sample(studio: Studio) -> Drawn:
    """A batch in which each finished picture makes room for the next, from staggered starts on."""
    waiting, jobs = iter(studio.pictures), list[_Job]()
    done: dict[int, Tensor] = {}
    num_hits = 0
    while len(done) < len(studio.pictures):
        _join(studio, jobs, waiting)
        latents = torch.cat([job.latents for job in jobs])
        with dit_cachegraph.requests([job.handle for job in jobs]):
            latents = studio.step(
                latents, [job.picture for job in jobs], [job.step for job in jobs]
            )
        for job, row in zip(jobs, latents.split(1), strict=True):
            job.latents, job.step = row, job.step + 1
        for job in [job for job in jobs if job.step == job.picture.num_steps]:
            jobs.remove(job)
            done[job.picture.number] = job.latents
            num_hits += job.handle.report.num_hits
            job.handle.end()
    return Drawn(tuple(done[i] for i in sorted(done)), num_hits / _num_steps(studio))


def _join(studio: Studio, jobs: list[_Job], waiting: Iterator[Picture]) -> None:
    """Let the next picture in where there is room: one a step, as requests come."""
    picture = next(waiting, None) if len(jobs) < BATCH else None
    if picture is not None:
        handle = dit_cachegraph.request(("sample", picture.number))
        jobs.append(_Job(picture, studio.noise(picture), handle))


MODES: Mapping[str, Callable[[Studio], Drawn]] = {
    ONE: draw_one_at_a_time,
    MAX: draw_as_one,
    PER_SAMPLE: draw_per_sample,
}


@dataclass
class _Measured:
    """Seconds of each round."""

    hit_rate: float = 0.0
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


@torch.no_grad()
def check(studio: Studio, tolerances: Sequence[float]) -> float:
    """How far the pictures of `per sample` are from those drawn alone, at worst; also warms up.

    Raises:
        SystemExit: too far, or they reuse other steps.
    """
    studio.warm()
    worst = 0.0
    for shares in TRAFFIC.values():
        studio.ask_for(shares)
        for tolerance in tolerances:
            dit_cachegraph.configure(studio.model, error_tolerance=tolerance)
            alone, own = draw_one_at_a_time(studio), draw_per_sample(studio)
            pairs = zip(own.pictures, alone.pictures, strict=True)
            worst = max(worst, *((a - b).abs().max().item() for a, b in pairs))
            if worst > MAY_DIFFER or abs(own.hit_rate - alone.hit_rate) > 0.01:
                raise SystemExit(
                    f"not what is drawn alone at error_tolerance={tolerance:g}: differs by "
                    f"{worst:.1e}, hits {own.hit_rate:.1%} and not {alone.hit_rate:.1%}"
                )
    return worst


@torch.no_grad()
def measure(studio: Studio, tolerances: Sequence[float], num_rounds: int) -> tuple[Row, ...]:
    """A row for each way to draw at each setting."""
    rows: list[Row] = []
    for traffic, shares in TRAFFIC.items():
        studio.ask_for(shares)
        for tolerance in tolerances:
            dit_cachegraph.configure(studio.model, error_tolerance=tolerance)
            draw_as_one(studio)  # Unmeasured: its sizes may be new.
            found = _rounds(studio, num_rounds)
            rows += [
                _row((traffic, mode, tolerance), found, len(studio.pictures)) for mode in MODES
            ]
    return tuple(rows)


def _rounds(studio: Studio, num_rounds: int) -> Mapping[str, _Measured]:
    """Each mode, in turns: there and back."""
    found, order = {mode: _Measured() for mode in MODES}, list(MODES)
    for _ in range(num_rounds):
        for mode in order:
            wall, cpu = time.perf_counter(), time.process_time()
            found[mode].hit_rate = MODES[mode](studio).hit_rate
            found[mode].wall.append(time.perf_counter() - wall)
            found[mode].cpu.append(time.process_time() - cpu)
        order.reverse()
    return found


def _row(named: tuple[str, str, float], found: Mapping[str, _Measured], num: int) -> Row:
    own, best = found[named[1]], found[PER_SAMPLE]
    return Row(
        *named,
        own.hit_rate,
        spread_of([num / seconds for seconds in own.wall]),
        spread_of([seconds / num for seconds in own.cpu]),
        paired_ratios(own.wall, best.wall),
        paired_ratios(own.cpu, best.cpu),
    )


def as_text(results: Results) -> str:
    """One line a row, with the throughput of `per sample` to that of the others."""
    header = ["traffic", "error_tolerance", "mode", "hits", "pictures/s", "CPU ms a picture"]
    rows = [[*header, "per sample to it", "by CPU time"]]
    for row in results.rows:
        told = [row.traffic, f"{row.error_tolerance:g}", row.mode, f"{row.hit_rate:.0%}"]
        told += [f"{row.pictures_a_second:.2f}", f"{1000 * row.cpu_seconds_a_picture.median:.0f}"]
        ratios = [f"{row.to_it:.2f}", f"{row.cpu_to_it:.2f}"]
        rows.append([*told, *(["", ""] if row.mode == PER_SAMPLE else ratios)])
    return (
        f"{table(rows)}\n{results.num_pictures} pictures, {results.num_steps} steps, medians and "
        f"quartiles of {results.num_rounds} rounds; at most {results.worst_difference:.1e} from "
        f"those drawn alone; {results.inner_backend}; {results.machine}"
    )


def main(arguments: Sequence[str]) -> None:
    """Check, measure, print, and keep what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench.serving")
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tolerances", type=float, nargs="+", default=TOLERANCES)
    parser.add_argument("--inner-backend", default="inductor")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE")
    given = parser.parse_args(arguments)
    use_one_thread()
    studio = Studio(given.pictures, given.steps, given.inner_backend)
    worst = check(studio, given.tolerances)
    rows = measure(studio, given.tolerances, given.rounds)
    asked = (given.pictures, given.steps, given.rounds, given.inner_backend)
    results = Results(this_machine(), *asked, worst, rows)
    sys.stdout.write(as_text(results) + "\n")
    if given.json is not None:
        given.json.write_text(json.dumps(asdict(results), indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
