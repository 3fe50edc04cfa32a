"""Jobs that are drawn in batches, one handle a sample, and what each of them is alone."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

import dit_cachegraph as dc
from dit_cachegraph.demo.flux_scenes import DATA, load_model
from dit_cachegraph.request_handle import RequestHandle
from dit_cachegraph.step_log import StepReport
from support.tiny_models import FLUX, Inputs, TinyModel, trajectory

SIZE, TEXT_TOKENS = 4, 6
NOT_OF_A_SAMPLE = ("img_ids", "txt_ids")
_DBCACHE: dict[str, object] = {"rule": "dbcache", "max_warmup_steps": 1}
SETTINGS: tuple[dict[str, object], ...] = (
    {"error_tolerance": 0.8},
    {**_DBCACHE, "residual_diff_threshold": 0.4},
    {**_DBCACHE, "residual_diff_threshold": 1.0, "max_continuous_cached_steps": 1},
    {**_DBCACHE, "residual_diff_threshold": 1.0, "Bn_compute_blocks": 1, "predictor": "taylorseer"},
    {"rule": "dbprune", "residual_diff_threshold": 0.6},
    {"rule": "teacache", "teacache_threshold": 0.5, "num_inference_steps": 6},
    {"enabled": False},
)


def _embedded(_: int) -> nn.Module:
    return load_model(FluxTransformer2DModel, DATA)


def _embedded_inputs(
    model: nn.Module, *, batch: int, size: int, text_tokens: int, seed: int
) -> Inputs:
    """Of the tiny FLUX, as wide as the shipped one is; its text is noise."""
    inputs = FLUX.make_inputs(model, batch=batch, size=size, text_tokens=text_tokens, seed=seed)
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    text = noise(batch, text_tokens, 64)
    wide = {"encoder_hidden_states": text, "pooled_projections": text.mean(1), "guidance": None}
    return {**inputs, **wide, "hidden_states": noise(batch, size * size, 48)}


EMBEDDED = TinyModel(
    "embedded",
    _embedded,
    _embedded_inputs,
    FLUX.block_lists,
    FLUX.stream_outputs,
    timestep_divisor=1000,
)


@dataclass(frozen=True)
class Recipe:
    """What tells one picture from another; its settings by their place in `SETTINGS`."""

    prompt: int
    seed: int
    num_steps: int
    settings: int


@dataclass(frozen=True)
class Alone:
    """The outputs of each step of a job that nobody shared a batch with, and what it decided."""

    outputs: tuple[Tensor, ...]
    steps: tuple[StepReport, ...]


@dataclass
class Job:
    recipe: Recipe
    handle: RequestHandle
    steps: Sequence[Inputs]
    num_done: int = 0
    outputs: list[Tensor] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        return self.num_done == len(self.steps)


class Studio:
    """Draws jobs with one model, `model` as it was compiled."""

    def __init__(self, tiny: TinyModel, model: nn.Module) -> None:
        self.tiny, self.model = tiny, model
        self._names: Iterator[int] = itertools.count()
        self._alone: dict[Recipe, Alone] = {}

    def begin(self, recipe: Recipe) -> Job:
        handle = dc.request(f"job {next(self._names)}", **SETTINGS[recipe.settings])
        return Job(recipe, handle, list(self._steps(recipe)))

    def _steps(self, recipe: Recipe) -> Iterator[Inputs]:
        given = dict(batch=1, size=SIZE, text_tokens=TEXT_TOKENS)
        text = self.tiny.make_inputs(self.model, **given, seed=recipe.prompt)
        latents = self.tiny.make_inputs(self.model, **given, seed=100 + recipe.seed)
        inputs = {**text, "hidden_states": latents["hidden_states"]}
        # None of its steps looks like the end of an image: what a job that is given up teaches the
        # model of ends would change what others do.
        return trajectory(self.tiny, inputs, recipe.num_steps, recipe.seed, scale=0.6)

    @torch.no_grad()
    def step(self, jobs: Sequence[Job]) -> None:
        """One step of each, in one batch whose tensors are put together anew."""
        inputs = stacked([job.steps[job.num_done] for job in jobs])
        with dc.requests([job.handle for job in jobs]):
            output = self.model(**inputs)[0]
        for job, row in zip(jobs, output.split(1), strict=True):
            job.outputs.append(row)
            job.num_done += 1

    @torch.no_grad()
    def alone(self, recipe: Recipe) -> Alone:
        """What the job is by itself, drawn once."""
        if recipe not in self._alone:
            job = self.begin(recipe)
            for inputs in job.steps:
                with job.handle:
                    job.outputs.append(self.model(**inputs)[0].clone())
            self._alone[recipe] = Alone(tuple(job.outputs), job.handle.report.steps)
            job.handle.end()
        return self._alone[recipe]

    @torch.no_grad()
    def warm(self) -> None:
        """What a server does first: each kind of call once, a batch with its size left free."""
        jobs = [self.begin(Recipe(0, seed, 2, 0)) for seed in range(2)]
        self.model(**jobs[0].steps[0])
        self.model(**stacked([jobs[0].steps[0]]))
        both = stacked([job.steps[0] for job in jobs])
        for name, value in both.items():
            if isinstance(value, Tensor) and name not in NOT_OF_A_SAMPLE:
                torch._dynamo.mark_dynamic(value, 0)
        self.model(**both)
        dc.reset(self.model)

    def assert_as_alone(self, job: Job, *, within: float) -> None:
        """So far, its decisions and outputs are those that it has alone."""
        alone = self.alone(job.recipe)
        own, theirs = job.handle.report.steps, alone.steps[: job.num_done]
        told = "\n".join(map(str, (*own, *theirs)))
        assert [step.skipped for step in own] == [step.skipped for step in theirs], told
        for output, expected in zip(job.outputs, alone.outputs, strict=False):
            # Lines through two steps double what another batch size rounds otherwise.
            atol = within * float(expected.abs().max())
            torch.testing.assert_close(output, expected, rtol=within, atol=atol)


def stacked(steps: Sequence[Inputs]) -> Inputs:
    """The inputs of a batch of these steps."""
    first = steps[0]
    return {
        name: torch.cat([step[name] for step in steps])  # type: ignore[misc]
        if isinstance(value, Tensor) and name not in NOT_OF_A_SAMPLE
        else value
        for name, value in first.items()
    }
