"""The modulated input of block 0, as it is or filtered for the noise level of the step."""

import math

from torch import Tensor

from dit_cachegraph import ops
from dit_cachegraph.exc import InvalidConfig
from dit_cachegraph.plan import CompiledTrunk
from dit_cachegraph.planning.grid import grid_of
from dit_cachegraph.policy.rule import NoiseFilter
from dit_cachegraph.runtime.step import Step
from dit_cachegraph.segments.slots import gatherer


class ModulatedInputReader:
    """Computes the modulated input of one trunk's calls, where a rule asks for it."""

    def __init__(self, compiled: CompiledTrunk) -> None:
        trunk, roles = compiled.trunk, compiled.roles
        self._function = compiled.modulated_input
        self._inputs = gatherer(
            () if isinstance(trunk.modulated_input, str) else trunk.modulated_input.inputs
        )
        self._timesteps = gatherer((*roles.host_timesteps, *roles.timesteps))
        self._latents = gatherer(roles.latents)

    def read(self, step: Step, noise_filter: NoiseFilter | None) -> Tensor:
        """The modulated input at the first border.

        Raises:
            InvalidConfig: it is to be filtered, and its grid or the noise level is not known.
        """
        assert self._function is not None
        (modulated,) = self._function(list(self._inputs(step.values)))
        assert isinstance(modulated, Tensor)
        if noise_filter is None:
            return modulated
        latents = self._latents(step.values) if step.handoff is None else step.handoff.latents
        grid = noise_filter.grid or grid_of(latents[0] if latents else None, modulated.shape[-2])
        if math.prod(grid) != modulated.shape[-2]:
            raise InvalidConfig(
                f"seacache_grid {grid} has {math.prod(grid)} tokens, and block 0 of this model is "
                f"fed {modulated.shape[-2]}"
            )
        power = float(len(grid)) if noise_filter.power is None else noise_filter.power
        return ops.filter_noise(modulated, self._noise(step, modulated), grid, power)

    def _noise(self, step: Step, modulated: Tensor) -> Tensor:
        """The share of noise in the latents, on the device of `modulated`: nothing waits for it."""
        timesteps = self._timesteps(step.values) if step.handoff is None else step.handoff.timesteps
        for timestep in timesteps:
            if isinstance(timestep, Tensor):
                level = ops.noise_level(timestep.to(modulated.device, non_blocking=True))
                return 1 - level if step.model.requests.known.direction > 0 else level
        raise InvalidConfig("seacache filters by the noise level, and this graph has no timestep")
