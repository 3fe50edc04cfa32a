"""The steps of an image from the inputs of one: latents and timestep are found by dataflow, as the
cache finds them, and moved on a little from step to step."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, fx, nn

from dit_cachegraph.backend import cut_graph
from dit_cachegraph.plan import Uncacheable
from dit_cachegraph.testing.expect import NotCacheable
from dit_cachegraph.testing.run import Inputs, call

STRIDE = 0.02


def steps_from(model: nn.Module, inputs: Inputs, num_steps: int) -> list[Inputs]:
    """The inputs of `num_steps` steps, of which the first is `inputs`. Latents go straight towards
    seeded noise, timesteps towards zero, by `STRIDE` of the way a step; the rest stays as it is.

    Raises:
        NotCacheable: no graph of the model is cached.
        ValueError: there is no timestep or no latents among the inputs, or the timestep can't move.
    """
    latents, timesteps = _moving(model, inputs)
    for name, found in (("latents", latents), ("timestep", timesteps)):
        if not found:
            raise ValueError(
                f"no argument was found that is the {name}: give the inputs of each step instead, "
                "as a function of the step's number"
            )
    generator = torch.Generator().manual_seed(0)
    ends = {
        n: torch.randn(t.shape, generator=generator, device="cpu").to(t) for n, t in latents.items()
    }
    return [
        {
            **inputs,
            **{name: torch.lerp(t, ends[name], i * STRIDE) for name, t in latents.items()},
            **{name: _moved(name, t, i) for name, t in timesteps.items()},
        }
        for i in range(num_steps)
    ]


def _moved(name: str, timestep: Tensor, step: int) -> Tensor:
    if timestep.is_floating_point():
        moved = timestep * (1 - step * STRIDE)
    else:
        moved = timestep - step * (timestep.abs() * STRIDE).ceil().to(timestep.dtype)
    if step > 0 and torch.equal(moved, timestep):
        raise ValueError(f"`{name}` is zero and can't fall: begin with the noisiest timestep")
    return moved


def _moving(model: nn.Module, inputs: Inputs) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Latents and timesteps among the inputs, by name."""
    latents: list[object] = []
    timesteps: list[object] = []
    refusals: list[str] = []

    def look(gm: fx.GraphModule, _: Sequence[Tensor]) -> Callable[..., object]:
        cut = cut_graph(gm)
        if isinstance(cut, Uncacheable):
            refusals.append(str(cut))
            return gm.forward
        roles = cut.roles

        def run(*args: object) -> object:
            latents.extend(args[i] for i in roles.latents)
            timesteps.extend(args[i] for i in (*roles.timesteps, *roles.host_timesteps))
            return gm.forward(*args)

        return run

    torch._dynamo.reset()
    call(cast(nn.Module, torch.compile(model, backend=look)), inputs)
    torch._dynamo.reset()
    if refusals and not latents:
        raise NotCacheable("\n".join(dict.fromkeys(refusals)))
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    found = [
        {name: t for name, t in tensors.items() if any(t is other for other in moving)}
        for moving in (latents, timesteps)
    ]
    return found[0], found[1]
