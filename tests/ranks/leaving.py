"""One rank of several, of which one leaves: each writes what it saw of it.

alike       all raise in the middle of a step, and go on
alone       rank 1 raises and stays alive: the others wait for it until the group's timeout; then
            all call another model of the same group, and the first once more
killed      the last rank is killed in the middle of a step
stopped     the last rank is stopped there, and neither ends nor answers
gradients   rank 1 is called with gradients, and so runs uncached
without 0   the first rank is killed, and with it the store, where that is its own
"""

import json
import os
import signal
import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import _functional_collectives as funcol

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import dit_cachegraph as dc  # noqa: E402
from support.toy_dits import GatedBlock, ToyDiT  # noqa: E402

SECONDS = 10
SOON_SECONDS = 3
NUM_TOKENS, NUM_TEXT_TOKENS, DIM = 4, 5, 8
WHAT_TO_DO: dict[str, object] = {"now": "nothing"}
Seen = dict[str, object]


@torch.library.custom_op("ranks_test::here", mutates_args=())
def here(h: Tensor) -> Tensor:
    """Where a rank may leave, in the middle of a block."""
    match WHAT_TO_DO["now"]:
        case "raise":
            raise ValueError("the prompt is empty")
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
    return h.clone()


@here.register_fake
def _(h: Tensor) -> Tensor:
    return torch.empty_like(h)


class LeavingBlock(nn.Module):
    """Looks at the tokens of all ranks, before and after the place where one may leave."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.block, self.group = GatedBlock(), group

    def forward(self, h: Tensor, temb: Tensor) -> Tensor:
        mean = funcol.all_reduce(h.mean(1, keepdim=True), "avg", self.group)
        h = self.block(torch.ops.ranks_test.here(h + 0.1 * mean), temb)
        return h + 0.1 * funcol.all_reduce(h.mean(1, keepdim=True), "avg", self.group)


def compiled(seconds: int) -> nn.Module:
    """A model whose ranks wait so long for each other."""
    torch._dynamo.reset()
    return compiled_for(dist.new_group(timeout=timedelta(seconds=seconds)))


def compiled_for(group: dist.ProcessGroup, num_blocks: int = 3) -> nn.Module:
    torch.manual_seed(0)
    model = ToyDiT([LeavingBlock(group) for _ in range(num_blocks)]).eval().requires_grad_(False)
    model = torch.compile(model, backend="cachedit", options={"inner_backend": "eager"})
    for step in range(2):
        run(model, step)
    assert not dc.summary(model).refusals
    dist.barrier()
    return model


def run(model: nn.Module, step: int) -> None:
    text = torch.ones(1, NUM_TEXT_TOKENS, DIM)
    model(torch.ones(1, NUM_TOKENS, DIM), torch.full((1,), 90.0 - step), text)


def try_step(model: nn.Module, step: int, does: str) -> Seen:
    """What came of a step, and how long it took."""
    WHAT_TO_DO["now"] = does
    began = time.monotonic()
    try:
        run(model, step)
    except (RuntimeError, ValueError) as error:
        seen = {"kind": type(error).__name__, "said": str(error)}
    else:
        seen = {"kind": None, "said": ""}
    finally:
        WHAT_TO_DO["now"] = "nothing"
    return {**seen, "seconds": time.monotonic() - began}


def alike() -> list[Seen]:
    model = compiled(60)
    return [try_step(model, step, "raise" if step == 2 else "nothing") for step in (2, 3, 4)]


def alone() -> list[Seen]:
    model = compiled(SECONDS)
    other = compiled_for(model.blocks[0].group, num_blocks=4)
    does = "raise" if dist.get_rank() == 1 else "nothing"
    own = try_step(model, 2, does)
    return [own, try_step(other, 2, "nothing"), try_step(model, 3, "nothing")]


def leave(who: int, does: str, seconds: int) -> list[Seen]:
    model = compiled(seconds)
    return [try_step(model, 2, does if dist.get_rank() == who else "nothing")]


def gradients() -> list[Seen]:
    """What is uncached gathers nothing, and is told by gloo alone that others do."""
    model = compiled(SOON_SECONDS)
    with torch.set_grad_enabled(dist.get_rank() == 1):
        return [try_step(model, 2, "nothing")]


def main(folder: Path, cases: list[str], store: str) -> None:
    rank, num_ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group(
        "gloo",
        init_method=store,
        rank=rank,
        world_size=num_ranks,
        timeout=timedelta(seconds=60),
    )
    torch.set_num_threads(1)
    warnings.filterwarnings("error", message=".*all_gather_into_tensor.*is deprecated")
    run_case = {
        "alike": alike,
        "alone": alone,
        "killed": lambda: leave(num_ranks - 1, "die", 60),
        "stopped": lambda: leave(num_ranks - 1, "stop", SOON_SECONDS),
        "gradients": gradients,
        "without 0": lambda: leave(0, "die", 60),
    }
    seen = {}
    with torch.no_grad():
        for case in cases:
            seen[case] = run_case[case]()
            (folder / f"rank{rank}.json").write_text(json.dumps(seen))
            (folder / f"{case}{rank}").touch()
            while case == "alone" and len(list(folder.glob("alone*"))) < num_ranks:
                time.sleep(0.1)
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2].split(","), sys.argv[3])
