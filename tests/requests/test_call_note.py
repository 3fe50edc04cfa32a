"""Graphs that break between the embedding of the timestep and the blocks: the fragment with the
blocks sees neither the timestep nor the user's text, and is told by the fragment before it."""

import pytest
import torch
from torch import nn

import dit_cachegraph as dc
from support.toy_dits import DIM, GatedBlock, SineEmbedding, ToyDiT

NUM_STEPS = 8


class BrokenDiT(ToyDiT):
    """Embeds and refines in one graph, draws in the next. The refined text is new at every call,
    and says something else at every timestep."""

    def __init__(self, is_broken: bool) -> None:
        torch.manual_seed(0)
        super().__init__([GatedBlock() for _ in range(6)])
        self.refine = nn.Linear(DIM, DIM)
        self.is_broken = is_broken

    def forward(self, hidden_states, timestep, encoder_hidden_states):
        temb = self.embed(timestep.type_as(hidden_states))
        h = self.proj_in(hidden_states)
        text = self.refine(encoder_hidden_states) * (1 + 0.1 * temb)
        if self.is_broken:
            torch._dynamo.graph_break()
        for block in self.blocks:
            h = block(h, temb, text)
        return self.proj_out(h)


def image_of(seed: int, text: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    start, end = torch.randn(2, 2, 64, DIM, generator=generator)
    return [
        {
            "hidden_states": torch.lerp(start, end, i / 10),
            "timestep": torch.full((2,), 90.0 - 9 * i),
            "encoder_hidden_states": text,
        }
        for i in range(NUM_STEPS)
    ]


def draw(compiled, passes) -> list[torch.Tensor]:
    """Two images, each in passes of guidance that share the latents object of a step."""
    outputs = []
    with torch.no_grad():
        for seed in range(2):
            texts = [torch.randn(2, 4, DIM, generator=torch.Generator().manual_seed(seed + 10 * p))
                     for p in range(passes)]  # fmt: skip
            for step in image_of(seed, texts[0]):
                for text in texts:
                    outputs.append(compiled(**{**step, "encoder_hidden_states": text}))
    return outputs


def compiled_toy(is_broken: bool):
    model = BrokenDiT(is_broken)
    settings = {"Fn_compute_blocks": 1, "max_warmup_steps": 2, "residual_diff_threshold": 0.3}
    options = {"inner_backend": "eager", **settings}
    return model, torch.compile(model, backend="cachedit", options=options)


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.filterwarnings("ignore::dit_cachegraph.NotCachedWarning")
def test_a_broken_graph_decides_as_a_whole_one(passes):
    whole, compiled = compiled_toy(is_broken=False)
    expected = draw(compiled, passes)
    broken, compiled = compiled_toy(is_broken=True)
    actual = draw(compiled, passes)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)
    ours, theirs = ([(s.step, s.hit) for s in dc.summary(m).steps] for m in (broken, whole))
    assert ours == theirs
    assert dc.summary(broken).num_hits >= 4 * passes
    assert len(dc.summary(broken).refusals) == 1
    assert dc.summary(broken).state_nbytes == 0


@pytest.mark.filterwarnings("ignore::dit_cachegraph.NotCachedWarning")
def test_what_was_noted_is_not_held():
    model, compiled = compiled_toy(is_broken=True)
    text = torch.randn(2, 4, DIM)
    with torch.no_grad():
        for step in image_of(0, text)[:3]:
            compiled(**step)
    assert dc.summary(model).state_nbytes > 0
    del text, step
    assert dc.summary(model).state_nbytes == 0


class Upscaler(nn.Module):
    """Has no blocks, and so is refused; it embeds a timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.linear = SineEmbedding(), nn.Linear(DIM, DIM)

    def forward(self, hidden_states, timestep, encoder_hidden_states):
        text = encoder_hidden_states.mean(1, keepdim=True)
        return self.linear(hidden_states + self.embed(timestep)) + text


class LinearTimeDiT(ToyDiT):
    """Embeds its timestep without a sinusoid, as fragments that are given it do."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__([GatedBlock() for _ in range(4)])
        self.time = nn.Linear(1, DIM)

    def forward(self, hidden_states, timestep, encoder_hidden_states):
        temb = torch.tanh(self.time(timestep[:, None] / 45))[:, None]
        h = self.proj_in(hidden_states)
        for block in self.blocks:
            h = block(h, temb, encoder_hidden_states)
        return self.proj_out(h)


@pytest.mark.filterwarnings("ignore::dit_cachegraph.NotCachedWarning")
def test_what_another_model_noted_is_of_another_call():
    """Its arguments live on while the passes of guidance are drawn."""
    model = LinearTimeDiT()
    options = {"inner_backend": "eager", "rule": "even", "every": 2}
    compiled = torch.compile(model, backend="cachedit", options=options)
    expected = draw(compiled, passes=2)
    alone = [(s.step, s.hit) for s in dc.summary(model).steps]
    dc.reset(model)
    arguments = (torch.randn(2, 64, DIM), torch.full((2,), 90.0), torch.randn(2, 4, DIM))
    with torch.no_grad():
        torch.compile(Upscaler(), backend="cachedit", options=options)(*arguments)
    torch.testing.assert_close(draw(compiled, passes=2), expected)
    steps = list(dc.summary(model).steps)
    assert [(s.step, s.hit) for s in steps[len(alone) :]] == alone
    assert sum(hit for _, hit in alone) >= NUM_STEPS
