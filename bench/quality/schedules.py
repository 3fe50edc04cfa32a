"""Schedules that people sample with: diffusers' own schedulers, as the pipelines set them."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)

from bench.quality.solvers import euler

FLUX_SHIFT, WAN_SHIFT = 3.0, 5.0


def shifted_euler() -> SchedulerMixin:
    """As SD3 comes, and about what FLUX.1-dev has for a picture of 1024 x 1024 (3.16)."""
    return FlowMatchEulerDiscreteScheduler(shift=FLUX_SHIFT)


def euler_by_size() -> SchedulerMixin:
    """As FLUX.1-dev comes: its pipeline works the shift out from the number of tokens."""
    return FlowMatchEulerDiscreteScheduler(shift=FLUX_SHIFT, use_dynamic_shifting=True)


def unipc_shifted() -> SchedulerMixin:
    """As Wan comes for 720p."""
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=WAN_SHIFT
    )


def dpm_shifted() -> SchedulerMixin:
    """DPM++ 2M on the levels of `unipc_shifted`."""
    return DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=WAN_SHIFT
    )


def dpm_by_size() -> SchedulerMixin:
    """DPM++ 2M for FLUX, whose pipeline always gives a shift of its own."""
    return DPMSolverMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        use_dynamic_shifting=True,
        time_shift_type="exponential",
    )


# By the name that settings show.
SCHEDULES: Mapping[str, Callable[[], SchedulerMixin]] = MappingProxyType(
    {
        "even": euler,
        "shift 3": shifted_euler,
        "shift by size": euler_by_size,
        "UniPC, flow shift 5": unipc_shifted,
        "DPM++ 2M, flow shift 5": dpm_shifted,
        "DPM++ 2M, shift by size": dpm_by_size,
    }
)
