"""Texts of several lengths in one nested tensor: they tell requests apart as padded ones do."""

import pytest
import torch
from torch import Tensor

import dit_cachegraph as dc
from support.toy_dits import DIM, NUM_TOKENS, AddingBlock, ToyDiT

HITS = [False, False, True, False, True, False]
TIMESTEPS = [90.0, 75.0, 60.0, 45.0, 30.0, 15.0]


class TextDiT(ToyDiT):
    """Adds what the text says, and nothing of the latents: an effect is that of its timestep."""

    def __init__(self) -> None:
        super().__init__([AddingBlock(step) for step in (1.0, 2.0, 3.0)])

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        for block in self.blocks:
            h = block(h, temb * e.mean(1, keepdim=True))
        return h


def nested(*texts: Tensor) -> Tensor:
    return torch.nested.nested_tensor(list(texts), layout=torch.jagged)


def noise(seed: int, *sizes: int) -> Tensor:
    return torch.randn(*sizes, DIM, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def compiled():
    options = {"inner_backend": "eager", "every": 2}
    return torch.compile(TextDiT(), backend="cachedit", options=options)


@pytest.mark.parametrize("is_rebuilt", [False, True])
@torch.no_grad()
def test_two_passes_of_guidance(compiled, is_rebuilt):
    said = [(noise(0, 5), noise(1, 3)), (noise(2, 2), noise(3, 4))]
    texts = [nested(*texts) for texts in said]
    clock = 0.0
    for i, timestep in enumerate(TIMESTEPS):
        clock = clock if HITS[i] else timestep
        latents = noise(4, 2, NUM_TOKENS) * (1 - i / 10)
        for text, own in zip(texts, said, strict=True):
            given = nested(*[words.clone() for words in own]) if is_rebuilt else text
            output = compiled(latents, torch.full((2,), timestep), given)
            expected = compiled._orig_mod(latents, torch.full((2,), clock), text)
            torch.testing.assert_close(output, expected)
            del given
    assert [step.hit for step in dc.summary(compiled).steps] == [h for h in HITS for _ in texts]


@torch.no_grad()
def test_a_batch_of_requests_runs_whole(compiled):
    text = nested(noise(0, 5), noise(1, 3))
    with dc.requests([dc.request("a"), dc.request("b")]):
        for timestep in TIMESTEPS:
            given = noise(4, 2, NUM_TOKENS), torch.full((2,), timestep), text
            torch.testing.assert_close(compiled(*given), compiled._orig_mod(*given))
    reasons = {step.reason for step in dc.summary(compiled).steps}
    assert reasons == {
        "runs whole: a nested tensor (`torch.nested`) can't be taken apart into samples"
    }
