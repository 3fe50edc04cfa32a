"""Random schedules on ranks that share a sample, in which one of them is treated otherwise.

All ranks draw the same schedule from its number. At each step nothing happens, as a rule; or all of
them begin another image, at another size; or one of them alone is reset, is given other settings,
draws another image, is at another timestep, or calls by another name. What must hold: each step
ends, and is a hit on all ranks or on none.
"""

import random
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import _functional_collectives as funcol

import dit_cachegraph as dc
from support.toy_dits import DIM, GatedBlock, ToyDiT

NUM_STEPS = 14
SIZES = (4, 6, 8)
OTHERWISE = ("reset", "settings", "off", "image", "timestep", "name", "bytes")
BOLD = {"residual_diff_threshold": 0.5, "Fn_compute_blocks": 1, "max_warmup_steps": 1}
RULES = (
    BOLD,
    {"error_tolerance": 5.0},
    {"rule": "dbprune", "max_warmup_steps": 1, "residual_diff_threshold": 0.9},
    {"rule": "even", "every": 2},
)
Seen = dict[str, object]


class SharingBlock(nn.Module):
    """Looks at the tokens of all ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.block = GatedBlock()

    def forward(self, h: Tensor, temb: Tensor) -> Tensor:
        mean = funcol.all_reduce(h.mean(1, keepdim=True), "avg", dist.group.WORLD)
        return self.block(h + 0.1 * mean, temb)


class SharingDiT(ToyDiT):
    """Each rank has its part of the tokens, from before the blocks until after them."""

    def __init__(self, num_blocks: int = 4) -> None:
        torch.manual_seed(0)
        super().__init__([SharingBlock() for _ in range(num_blocks)])
        self.rank, self.num_ranks = dist.get_rank(), dist.get_world_size()
        self.eval().requires_grad_(False)

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        own = super().trunk(h.chunk(self.num_ranks, dim=1)[self.rank], temb, e)
        return funcol.all_gather_tensor(own.contiguous(), 1, dist.group.WORLD)


@dataclass
class Schedule:
    """One image after another on this rank. `alone` is the rank that is treated otherwise."""

    model: nn.Module
    number: int
    alone: int
    settings: dict[str, object]
    events: list[str] = field(default_factory=list)
    hits: list[list[bool]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.number)
        self.is_alone = dist.get_rank() == self.alone
        self.name: AbstractContextManager[object] = nullcontext()
        self.begin()

    def begin(self) -> None:
        self.image, self.step, self.size = self.rng.random(), 0, self.rng.choice(SIZES)
        self.text = _normal(self.image + 2, 1, 4)

    def run(self) -> None:
        for _ in range(NUM_STEPS):
            event = self.rng.choice(OTHERWISE) if self.rng.random() < 0.2 else "nothing"
            if self.rng.random() < 0.1:
                event = "begin"
            self.events.append(event)
            self.one_step(event)

    def one_step(self, event: str) -> None:
        if event == "begin":
            self.begin()
        self.configure(event)
        image, timestep = self.image, 90.0 - 4 * self.step
        if self.is_alone and event == "image":
            image += 1
        if self.is_alone and event == "timestep":
            timestep -= 1
        if self.is_alone and event == "reset":
            dc.reset(self.model)
        name = dc.request("alone") if self.is_alone and event == "name" else nullcontext()
        latents = torch.lerp(
            _normal(image, 1, self.size), _normal(-1, 1, self.size), self.step / 40
        )
        with name:
            self.model(latents, torch.full((1,), timestep), self.text)
        self.step += 1
        hits: list[object] = [None] * dist.get_world_size()
        dist.all_gather_object(hits, dc.summary(self.model).steps[-1].skipped)
        self.hits.append(hits)

    def configure(self, event: str) -> None:
        own: dict[str, object] = {"enabled": True, "max_state_bytes": None, **self.settings}
        if self.is_alone and event == "settings":
            own |= {"num_inference_steps": 77}
        if self.is_alone and event == "off":
            own |= {"enabled": False}
        if self.is_alone and event == "bytes":
            own |= {"max_state_bytes": 0}
        own.setdefault("num_inference_steps", None)
        dc.configure(self.model, **own)


def _normal(seed: float, batch: int, num_tokens: int) -> Tensor:
    generator = torch.Generator().manual_seed(int(seed * 1000) + 10_000)
    return torch.randn(batch, num_tokens, DIM, generator=generator)


def run_schedules(numbers: list[int]) -> Seen:
    """What all ranks skipped at each step of each schedule."""
    torch._dynamo.reset()
    model = SharingDiT()
    compiled = torch.compile(
        model, backend="cachedit", dynamic=True, options={"inner_backend": "eager"}
    )
    seen = []
    for number in numbers:
        dc.reset(compiled)
        schedule = Schedule(compiled, number, number % 2, RULES[number % len(RULES)])
        schedule.run()
        seen.append({"events": schedule.events, "skipped": schedule.hits})
    return {"schedules": seen, "refusals": list(dc.summary(compiled).refusals)}
