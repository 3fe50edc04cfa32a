"""Second-order solvers on the schedule of diffusers' flow-matching Euler: the honest rivals of a
cache that forecasts, which is such a solver in disguise."""

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler, SchedulerMixin, UniPCMultistepScheduler
from torch import Tensor


class OverEvenSteps(SchedulerMixin):
    """Before a scheduler of diffusers: its steps are even where nobody gives their levels."""

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: object = None,
        sigmas: np.ndarray | None = None,
        **others: object,
    ) -> None:
        """As the parent's; without levels over `even_levels`."""
        sigmas = even_levels(num_inference_steps) if sigmas is None else sigmas
        super().set_timesteps(len(sigmas), device, sigmas=sigmas, **others)


class Euler(OverEvenSteps, FlowMatchEulerDiscreteScheduler):
    """Order 1, over even steps."""


class AdamsBashforth2(Euler):
    """Two-step Adams-Bashforth over the real step widths; the first step is Euler's."""

    _before: Tensor | None = None

    def step(
        self, model_output: Tensor, timestep: Tensor, sample: Tensor, **others: object
    ) -> tuple[Tensor]:
        """As the parent's, along the velocity extrapolated to the middle of the step."""
        velocity, i = model_output, self.step_index or 0
        if i > 0:
            assert self._before is not None, "a step before this one"
            ratio = (self.sigmas[i + 1] - self.sigmas[i]) / (self.sigmas[i] - self.sigmas[i - 1])
            velocity = velocity + 0.5 * ratio * (velocity - self._before)
        self._before = model_output
        return super().step(velocity, timestep, sample, **others)


class UniPC(OverEvenSteps, UniPCMultistepScheduler):
    """diffusers' own multistep solver, of order 2 with its corrector, over even steps."""


def even_levels(num_steps: int | None) -> np.ndarray:
    """Noise levels from 1 to 1 / n. FluxPipeline gives these; WanPipeline leaves them to the
    scheduler, and diffusers' Euler would waste one of n steps on the last thousandth."""
    assert num_steps is not None, "a number of steps, or their noise levels"
    return np.linspace(1.0, 1 / num_steps, num_steps)


def euler() -> SchedulerMixin:
    """What the pipelines come with."""
    return Euler()


def adams_bashforth() -> SchedulerMixin:
    """Order 2."""
    return AdamsBashforth2()


def unipc() -> SchedulerMixin:
    """Order 2 with a corrector."""
    return UniPC(solver_order=2, prediction_type="flow_prediction", use_flow_sigmas=True)


def largest_difference(one: SchedulerMixin, other: SchedulerMixin, num_steps: int) -> float:
    """Between the noise levels of two solvers, given a number of steps as WanPipeline does."""
    for scheduler in (one, other):
        scheduler.set_timesteps(num_steps)
    return (one.sigmas - other.sigmas).abs().max().item()
