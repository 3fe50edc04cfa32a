"""A model whose blocks are compiled one by one, and whose own code can be changed afterwards."""

import torch
from torch import Tensor, nn

import dit_cachegraph as dc
from support.toy_dits import GatedBlock, ToyDiT, toy_inputs
from support.toy_runs import NUM_WATCHED, toy_steps


class SwitchedDiT(ToyDiT):
    """`way` says how the blocks are called; their own graphs know nothing of it."""

    def __init__(self, num_blocks: int = 6, way: str = "plain") -> None:
        torch.manual_seed(0)
        super().__init__([GatedBlock() for _ in range(num_blocks)])
        self.way = way
        self.seen: list[Tensor] = []
        self.eval().requires_grad_(False)

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        blocks = list(self.blocks)
        if self.way.endswith("swapped"):
            blocks[3], blocks[4] = blocks[4], blocks[3]
        if self.way == "twice":
            blocks = blocks * 2
        if self.way == "leaves one out":
            blocks.pop(2)
        if self.way == "stops early":
            blocks = blocks[:-1]
        kept, temb = [], temb.clone()
        for i, block in enumerate(blocks):
            if self.way == "adds the last but one" and i == len(blocks) - 1:
                kept.append(h)
            h = block(h, temb, e)
            if self.way.startswith("writes to the conditioning") and i < 4:
                temb += 0.5
            if self.way.startswith("writes to a weight") and i == 2:
                self.blocks[1].up.weight.mul_(2)
            if self.way.startswith("moves weights away") and i < 3:
                for weight in block.parameters():  # As offloading to disk does.
                    weight.data = torch.zeros_like(weight)
            if self.way == "fails" and i == 3:
                raise RuntimeError("between two blocks")
            if self.way == "scales" and i == 3:
                h = 1.5 * h
            if self.way == "writes" and i == 3:
                h += 1.0
            if self.way == "reads" and i == 3:
                self.seen.append(h.mean())
            if self.way == "collects":
                kept.append(h)
        return h + sum(0.1 * k for k in kept) if kept else h


def compile_blocks(model: nn.Module, inner_backend: str = "eager", **settings: object) -> None:
    """Each block by itself: one first block, no warm-up, whatever `settings` don't say."""
    options = {"inner_backend": inner_backend, "Fn_compute_blocks": 1, "max_warmup_steps": 0}
    for block in model.blocks:
        block.compile(backend="cachedit", options={**options, **settings})


@torch.no_grad()
def call(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    return model(**inputs)


def watch(model: nn.Module) -> None:
    """The calls that are watched before any is reused, of another image."""
    for i in range(NUM_WATCHED):
        call(model, toy_inputs(80.0 - 10 * i, seed=7))


def linked(**settings: object) -> tuple[SwitchedDiT, list[dict[str, Tensor]]]:
    """A model that was watched, of which a step has computed and the next was reused, and the
    inputs of the next two."""
    model = SwitchedDiT()
    compile_blocks(model, residual_diff_threshold=1.0, **settings)
    watch(model)
    first, second, *others = toy_steps([60.0, 50.0, 40.0, 30.0])
    call(model, first)
    call(model, second)
    last = dc.summary(model).steps[-1]
    assert last.hit, last.reason
    return model, others
