"""Blocks that return views, as those that turn their tokens do: what a hit hands on in their place
is laid out as they do it, so that the next block isn't compiled anew."""

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import dit_cachegraph as dc
from dit_cachegraph.links.kinds import UNSEEN
from migration.stand_ins import OwnBlock, OwnTransformer
from support.toy_runs import NUM_WATCHED

NUM_STEPS = 8
SETTINGS = {
    "blocks before and after": {
        "Fn_compute_blocks": 1,
        "Bn_compute_blocks": 1,
        "residual_diff_threshold": 1.0,
        "max_warmup_steps": 2,
    },
    "all blocks": {"every": 3},
}


class TurnedBlock(OwnBlock):
    """[tokens, batch, channels]"""

    gain: float | None = None

    def forward(self, hidden_states: Tensor, temb: Tensor) -> Tensor:
        h = super().forward(hidden_states.transpose(0, 1), temb)
        h = h if self.gain is None else h + self.gain * torch.sin(h)
        return h.transpose(0, 1)


class Turned(OwnTransformer):
    """The first block is given other strides than the second: what is compiled for later ones, as
    for those with a gain, looks at what a value is a view of."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TurnedBlock() for _ in range(6)).eval().requires_grad_(False)
        self.blocks[2].gain = self.blocks[5].gain = 0.1
        self.out = nn.Linear(16, 16).requires_grad_(False)

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        temb = self.time(torch.stack([timestep, timestep], dim=-1))[:, None]
        h = hidden_states.transpose(0, 1)
        for block in self.blocks:
            h = block(h, temb)
        return self.out(h.transpose(0, 1))


def image(seed: int, num_steps: int = NUM_STEPS) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    noise, picture = torch.randn(2, 2, 8, 16, generator=draw).unbind()
    levels = [1 - i / (2 * num_steps) for i in range(num_steps)]
    return [(torch.lerp(picture, noise, level), torch.full((2,), level)) for level in levels]


@torch.no_grad()
def draw(model: nn.Module, steps: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    return [model(*step) for step in steps]


def linked(options: dict[str, object]) -> Turned:
    """Its blocks compiled one by one, and watched."""
    model = Turned()
    for block in model.blocks:
        block.compile(backend="cachedit", options=options)
    draw(model, image(0, NUM_WATCHED))
    return model


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("inner_backend", ["eager", "inductor"])
def test_hits_are_those_of_the_model_compiled_whole(
    settings: dict[str, object], inner_backend: str
) -> None:
    options = {"inner_backend": inner_backend, **settings}
    model, whole = linked(options), Turned()
    num_graphs = counters["stats"]["unique_graphs"]
    got = draw(model, image(1))
    assert counters["stats"]["unique_graphs"] == num_graphs
    whole.compile(backend="cachedit", options=options)
    torch.testing.assert_close(got, draw(whole, image(1)))
    hits = [step.hit for step in dc.summary(whole).steps]
    assert [step.hit for step in dc.summary(model).steps] == hits and sum(hits) >= 4


def test_steps_that_were_watched_half_way_leave_nothing_of_before_to_use() -> None:
    model = linked({"inner_backend": "eager", **SETTINGS["blocks before and after"]})
    before, watched, computed, reused = image(1)[:3], image(1)[3:6], image(1)[6:7], image(1)[7:]
    draw(model, before)
    torch._dynamo.reset()
    draw(model, watched)
    torch.testing.assert_close(draw(model, computed), draw(Turned(), computed))
    draw(model, reused)
    told = [(step.hit, step.reason) for step in dc.summary(model).steps[-2:]]
    assert dc.summary(model).steps[2].hit
    assert told == [(False, UNSEEN), (True, "hit, threshold >= 1")]
