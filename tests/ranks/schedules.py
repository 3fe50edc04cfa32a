"""Random schedules on ranks that share a sample, in which one of them is treated otherwise.

All ranks draw the same schedule from its number. At each step nothing happens, as a rule; or all of
them begin another image, at another size, or write to their control; or one of them alone is
reset, is given other settings, draws another image, is at another timestep, calls by another name,
or writes to its control. What must hold: each step ends, and is a hit on all ranks or on none.
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
OTHERWISE = ("reset", "settings", "off", "image", "timestep", "name", "bytes", "control")
BOLD = {"residual_diff_threshold": 0.5, "Fn_compute_blocks": 1, "max_warmup_steps": 1}
RULES = (
    BOLD,
    {"error_tolerance": 5.0},
    {"rule": "dbprune", "max_warmup_steps": 1, "residual_diff_threshold": 0.9},
    {"rule": "even", "every": 2},
)
Seen = dict[str, object]


class SharingBlock(nn.Module):
    """Looks at the tokens of all ranks of a group, which it knows by name as a mesh does."""

    def __init__(self, group: str) -> None:
        super().__init__()
        self.block, self.group = GatedBlock(), group

    def forward(self, h: Tensor, temb: Tensor) -> Tensor:
        mean = funcol.all_reduce(h.mean(1, keepdim=True), "avg", self.group)
        return self.block(h + 0.1 * mean, temb)


class SharingDiT(ToyDiT):
    """Each rank of a group has its part of the tokens, from before the blocks until after them. A
    control is added at each block."""

    def __init__(self, num_blocks: int = 4, group: dist.ProcessGroup | None = None) -> None:
        """None: the group of all ranks."""
        torch.manual_seed(0)
        group = dist.group.WORLD if group is None else group
        super().__init__([SharingBlock(group.group_name) for _ in range(num_blocks)])
        self.group = group.group_name
        self.rank, self.num_ranks = group.rank(), group.size()
        self.eval().requires_grad_(False)

    def forward(self, latents: Tensor, timestep: Tensor, text: Tensor, control: Tensor) -> Tensor:
        temb = self.embed(timestep) + text.mean(1, keepdim=True)
        h, added = (self.own(tokens) for tokens in (self.proj_in(latents), control[..., :DIM]))
        for block in self.blocks:
            h = block(h + 0.1 * added, temb)
        whole = funcol.all_gather_tensor(h.contiguous(), 1, self.group)
        return self.proj_out(whole)

    def own(self, tokens: Tensor) -> Tensor:
        return tokens.chunk(self.num_ranks, dim=1)[self.rank]


@dataclass
class Schedule:
    """One image after another on this rank. `alone` is the rank that is treated otherwise."""

    model: nn.Module
    number: int
    alone: int
    settings: dict[str, object]
    events: list[str] = field(default_factory=list)
    skipped: list[list[object]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.number)
        self.is_alone = dist.get_rank() == self.alone
        self.name: AbstractContextManager[object] = nullcontext()
        self.begin()

    def begin(self) -> None:
        self.image, self.step, self.size = self.rng.random(), 0, self.rng.choice(SIZES)
        # Neither has ever the shape of the latents, which it would be taken for.
        self.text, self.control = normal(self.image + 2, 5), normal(5, self.size, 2 * DIM)

    def run(self) -> None:
        for _ in range(NUM_STEPS):
            event = self.rng.choice(OTHERWISE) if self.rng.random() < 0.2 else "nothing"
            if self.rng.random() < 0.1:
                event = self.rng.choice(("begin", "written"))
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
        if event == "written" or (self.is_alone and event == "control"):
            self.control.mul_(1.0)
        name = dc.request("alone") if self.is_alone and event == "name" else nullcontext()
        latents = torch.lerp(normal(image, self.size), normal(-1, self.size), self.step / 40)
        with name:
            self.model(latents, torch.full((1,), timestep), self.text, self.control)
        self.step += 1
        done = dc.summary(self.model).steps[-1]
        skipped: list[object] = [None] * dist.get_world_size()
        dist.all_gather_object(skipped, done.skipped)
        self.skipped.append(skipped)
        self.reasons.append(done.reason)

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


def normal(seed: float, num_tokens: int, width: int = DIM) -> Tensor:
    generator = torch.Generator().manual_seed(int(seed * 1000) + 10_000)
    return torch.randn(1, num_tokens, width, generator=generator)


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
        told = ("events", "skipped", "reasons")
        seen.append({name: vars(schedule)[name] for name in told})
    return {"schedules": seen, "refusals": list(dc.summary(compiled).refusals)}
