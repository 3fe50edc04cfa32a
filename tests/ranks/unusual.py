"""What ranks may also meet: options of one alone, other grad modes, a group that doesn't have all
ranks, and groups that are destroyed and made anew. Each tells of each step what was decided."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import dit_cachegraph as dc
from dit_cachegraph.models import REGISTRY
from ranks.schedules import BOLD, SharingDiT, normal
from support.toy_dits import DIM

NUM_TOKENS, NUM_TEXT_TOKENS = 6, 5
OPTIONS: tuple[dict[str, object], ...] = (
    {"Fn_compute_blocks": 2},
    {"Bn_compute_blocks": 1},
    {"residual_diff_threshold": 0.1},
    {"predictor": "taylorseer"},
    {"rule": "dbprune"},
    {"rule": "even", "every": 2},
    {"error_tolerance": 5.0},
)
Seen = dict[str, object]
Told = list[list[object]]
Mode = Callable[[], AbstractContextManager[object]]


class Sharer:
    """This rank's image, of those that a group draws together."""

    def __init__(self, group: dist.ProcessGroup | None = None, image: int = 3) -> None:
        torch._dynamo.reset()
        self.module, options = SharingDiT(group=group), {"inner_backend": "eager"}
        self.model: nn.Module = torch.compile(self.module, backend="cachedit", options=options)
        dc.configure(self.model, **BOLD)
        self.first, self.last = normal(image, NUM_TOKENS), normal(-1, NUM_TOKENS)
        self.text, self.control = normal(4, NUM_TEXT_TOKENS), normal(5, NUM_TOKENS, 2 * DIM)
        self.step = 0

    def run(self, num_steps: int, mode: Mode = torch.no_grad) -> Told:
        """Whether each of the next steps was a hit, and why."""
        for step in range(self.step, self.step + num_steps):
            latents = torch.lerp(self.first, self.last, step / 40)
            with mode():
                self.model(latents, torch.full((1,), 90.0 - step), self.text, self.control)
        self.step += num_steps
        return [[step.hit, step.reason] for step in dc.summary(self.model).steps[-num_steps:]]


def by_options() -> dict[str, Told]:
    """Rank 1 alone is configured otherwise for two steps, or goes by options of a request."""
    sharer, told, is_alone = Sharer(), {}, dist.get_rank() == 1
    sharer.run(2)
    for options in OPTIONS:
        if is_alone:
            dc.configure(sharer.model, **options)
        told[str(options)] = sharer.run(2)
        if is_alone:
            dc.configure(sharer.model, preset="balanced", **BOLD)
        told[str(options)] += sharer.run(2)
    with dc.request("one", residual_diff_threshold=0.9) if is_alone else nullcontext():
        told["request"] = sharer.run(2)
    told["request"] += sharer.run(2)
    return told


def by_modes() -> dict[str, Told]:
    """Some ranks are under `no_grad` and others under `inference_mode`, which they change."""
    sharer, is_alone = Sharer(), dist.get_rank() == 1
    modes = (torch.no_grad, torch.inference_mode)
    told = sharer.run(3, modes[is_alone]) + sharer.run(3, modes[not is_alone])
    return {"steps": told + sharer.run(2)}


def by_part() -> dict[str, Told]:
    """The first two ranks share a sample; the others have another one, or none."""
    pair = dist.new_group([0, 1])
    if dist.get_rank() > 1:
        return {"steps": []}
    sharer = Sharer(pair)
    told = sharer.run(3)
    if dist.get_rank() == 1:
        dc.reset(sharer.model)
    return {"steps": told + sharer.run(2)}


def by_memory() -> dict[str, Told]:
    """What is held is freed on rank 1 alone, as under a bound on its bytes or its idle seconds."""
    sharer = Sharer()
    told = sharer.run(3)
    if dist.get_rank() == 1:
        (state,) = REGISTRY.states_of([sharer.module])
        for track in state.requests.held.least_recent():
            state.requests.free(track, "for a test")
    return {"steps": told + sharer.run(2)}


def by_group_made_anew(folder: Path) -> dict[str, Told]:
    """What was compiled goes on with a group of the same ranks, and with no other."""
    rank, num_ranks, sharer = dist.get_rank(), dist.get_world_size(), Sharer()
    told = {"before": sharer.run(2)}
    dist.destroy_process_group()
    told["destroyed"] = [try_to_run(sharer)]
    begin_anew(folder / "others", (rank + 1) % num_ranks, num_ranks)
    told["others"] = [try_to_run(sharer)]
    dist.destroy_process_group()
    begin_anew(folder / "same", rank, num_ranks)
    told["same"] = sharer.run(2)
    return told


def begin_anew(store: Path, rank: int, num_ranks: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=num_ranks)


def try_to_run(sharer: Sharer) -> list[object]:
    try:
        sharer.run(1)
    except dc.RankLost as error:
        return [None, str(error)]
    return [None, "it ran"]


def run_unusual(folder: Path) -> Seen:
    """All of them, one after the other."""
    return {
        "options": by_options(),
        "modes": by_modes(),
        "part": by_part(),
        "memory": by_memory(),
        "anew": by_group_made_anew(folder),
    }
