"""Which argument is what: the latents that are denoised, the timesteps, what an image is drawn by.

A wrong answer shows as a new image at every step: an argument that moves is no conditioning.
"""

import torch
from torch import Tensor, nn

import dit_cachegraph as dc
from support.toy_dits import DIM, GatedBlock, ToyDiT, toy_inputs
from support.toy_runs import assert_cached, compile_toy

NUM_STEPS = 4


def gated_blocks(num_blocks: int) -> list[nn.Module]:
    torch.manual_seed(0)
    return [GatedBlock() for _ in range(num_blocks)]


@torch.no_grad()
def reasons(model: nn.Module, steps: list[dict[str, Tensor]]) -> list[str]:
    """Why each step did what it did, under a threshold that lets all further ones hit."""
    compiled = compile_toy(model, residual_diff_threshold=1.0)
    for inputs in steps:
        compiled(**inputs)
    return [step.reason for step in dc.summary(compiled).steps]


def is_one_image(found: list[str]) -> bool:
    return found[0] == "new image" and all(reason.startswith("hit") for reason in found[1:])


def angles() -> list[float]:
    return [90.0 - 10.0 * i for i in range(NUM_STEPS)]


class FrameTimeDiT(ToyDiT):
    """The timestep comes as (batch, 1, 1, 1): one of each sample, as of frames in a video model."""

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        return super().forward(hidden_states, timestep[:, 0, 0, 0])


class TwoTimesDiT(ToyDiT):
    """A second timestep is embedded as its distance from the first."""

    def forward(self, hidden_states: Tensor, timestep: Tensor, target: Tensor) -> Tensor:
        h = self.proj_in(hidden_states)
        temb = self.embed(timestep) + self.embed(timestep - target)
        return self.proj_out(self.trunk(h, temb, None))


class WidePatternDiT(ToyDiT):
    """A sine of a picture of three axes is no timestep: (batch, tokens, channels) conditions it."""

    def forward(self, hidden_states: Tensor, timestep: Tensor, picture: Tensor) -> Tensor:
        h = self.proj_in(hidden_states)
        temb = self.embed(timestep) + nn.functional.linear(torch.sin(picture), self.proj_out.weight)
        return self.proj_out(self.trunk(h, temb.mean(dim=1, keepdim=True), None))


def test_timestep_of_many_dimensions() -> None:
    steps = [toy_inputs(angle) for angle in angles()]
    inputs = [
        {"hidden_states": s["hidden_states"], "timestep": s["timestep"][:, None, None, None]}
        for s in steps
    ]
    assert is_one_image(reasons(FrameTimeDiT(gated_blocks(3)), inputs))


def test_timestep_that_is_embedded_as_a_distance() -> None:
    steps = [toy_inputs(angle) for angle in angles()]
    inputs = [
        {
            "hidden_states": s["hidden_states"],
            "timestep": s["timestep"],
            "target": s["timestep"] - 10,
        }
        for s in steps
    ]
    assert is_one_image(reasons(TwoTimesDiT(gated_blocks(3)), inputs))


def test_picture_that_reaches_a_sine_says_whose_step_it_is() -> None:
    steps = [toy_inputs(angle) for angle in angles()]
    inputs = [{"hidden_states": s["hidden_states"], "timestep": s["timestep"]} for s in steps]
    one, other = torch.zeros(2, 5, DIM), torch.ones(2, 5, DIM)
    same = [{**i, "picture": one} for i in inputs]
    assert is_one_image(reasons(WidePatternDiT(gated_blocks(3)), same))
    two = [{**i, "picture": picture} for i, picture in zip(inputs, (one, one, other), strict=False)]
    found = reasons(WidePatternDiT(gated_blocks(3)), two)
    assert [reason == "new image" for reason in found] == [True, False, True]


class SoundBlock(nn.Module):
    """Both streams read the other."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.sound = GatedBlock(), GatedBlock()

    def forward(self, h: Tensor, sound: Tensor, temb: Tensor) -> tuple[Tensor, Tensor]:
        return self.image(h, temb, sound), self.sound(sound, temb, h)


class SoundDiT(ToyDiT):
    """Denoises a picture and a sound; returns both, or the picture alone."""

    def __init__(self, num_blocks: int, returns_sound: bool = True) -> None:
        torch.manual_seed(0)
        super().__init__([SoundBlock() for _ in range(num_blocks)])
        self.returns_sound = returns_sound

    def forward(self, hidden_states: Tensor, timestep: Tensor, sound: Tensor) -> object:
        h, temb = self.proj_in(hidden_states), self.embed(timestep)
        for block in self.blocks:
            h, sound = block(h, sound, temb)
        return (self.proj_out(h), self.proj_out(sound)) if self.returns_sound else self.proj_out(h)


def sound_steps(sounds: list[Tensor]) -> list[dict[str, Tensor]]:
    steps = [toy_inputs(angle) for angle in angles()]
    return [
        {"hidden_states": s["hidden_states"], "timestep": s["timestep"], "sound": sound}
        for s, sound in zip(steps, sounds, strict=True)
    ]


def test_sound_that_is_denoised_with_the_picture_is_latents() -> None:
    torch.manual_seed(0)
    noise = torch.randn(2, 4, DIM)
    steps = sound_steps([noise * (1 - i / 10) for i in range(NUM_STEPS)])
    assert is_one_image(reasons(SoundDiT(3), steps))


def test_sound_that_is_not_returned_is_conditioning() -> None:
    torch.manual_seed(0)
    one, other = torch.randn(2, 4, DIM), torch.randn(2, 4, DIM)
    found = reasons(SoundDiT(3, returns_sound=False), sound_steps([one, one, other, other]))
    assert [reason == "new image" for reason in found] == [True, False, True, False]


class ContextDiT(ToyDiT):
    """A context of the latents' shape comes first in one tensor with them."""

    def __init__(self) -> None:
        super().__init__(gated_blocks(3))
        self.joined = nn.Linear(2 * DIM, DIM)

    def forward(self, hidden_states: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        h = self.joined(torch.cat([context, hidden_states], dim=-1))
        return self.proj_out(self.trunk(h, self.embed(timestep), None))


def test_new_noise_under_an_old_context_is_a_new_image() -> None:
    """The sketch is of both, whichever of them moves."""
    context = torch.ones(2, 6, DIM)
    first = [{**toy_inputs(angle, seed=0), "context": context} for angle in angles()]
    second = [{**toy_inputs(angle - 40, seed=1), "context": context} for angle in angles()]
    for inputs in (*first, *second):
        del inputs["encoder_hidden_states"]
    found = reasons(ContextDiT(), [*first, *second])
    assert is_one_image(found[:NUM_STEPS]) and is_one_image(found[NUM_STEPS:])


class PackedDiT(ToyDiT):
    """The latents are written into a buffer beside the text."""

    def forward(self, hidden_states: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        num_text = text.shape[1]
        both = text.new_zeros(2, num_text + hidden_states.shape[1], DIM)
        both[:, :num_text] = text
        both[:, num_text:] = self.proj_in(hidden_states)
        h = self.trunk(both, self.embed(timestep), None)
        return self.proj_out(h[:, num_text:])


def test_latents_that_are_written_into_a_buffer() -> None:
    text = torch.ones(2, 4, DIM)
    steps = [
        {
            "hidden_states": toy_inputs(0.0)["hidden_states"] * (1 - i / 10),
            "timestep": torch.full([2], angle),
            "text": text,
        }
        for i, angle in enumerate(angles())
    ]
    assert is_one_image(reasons(PackedDiT(gated_blocks(3)), steps))


class LateDiT(ToyDiT):
    """The last block works on a stream of its own, which was there from the start."""

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        late = h.flip(0)
        *blocks, last = self.blocks
        for block in blocks:
            h = block(h, temb)
        return last(late, temb, h)


def test_stream_that_only_passes_by_is_not_compared() -> None:
    """Its residual is zero until the last block, and a diff of it would be NaN."""
    graph = assert_cached(LateDiT(gated_blocks(4)))
    assert graph.num_blocks == 4
