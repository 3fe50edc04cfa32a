"""Second-order solvers on the schedule of diffusers' flow-matching Euler: the honest rivals of a
cache that forecasts, which is such a solver in disguise."""

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler, SchedulerMixin, UniPCMultistepScheduler
from torch import Tensor


class AdamsBashforth2(FlowMatchEulerDiscreteScheduler):
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


def euler() -> SchedulerMixin:
    """What the pipelines come with."""
    return FlowMatchEulerDiscreteScheduler()


def adams_bashforth() -> SchedulerMixin:
    """Order 2."""
    return AdamsBashforth2()


def unipc() -> SchedulerMixin:
    """diffusers' own multistep solver, of order 2 with its corrector."""
    return UniPCMultistepScheduler(
        solver_order=2, prediction_type="flow_prediction", use_flow_sigmas=True
    )


def largest_difference(one: SchedulerMixin, other: SchedulerMixin, num_steps: int) -> float:
    """Between the noise levels of two solvers that are given what the pipelines give them."""
    sigmas = np.linspace(1.0, 1 / num_steps, num_steps)
    for scheduler in (one, other):
        scheduler.set_timesteps(num_steps, sigmas=sigmas)
    return (one.sigmas - other.sigmas).abs().max().item()
