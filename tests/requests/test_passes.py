"""Passes of guidance that no conditioning tensor tells apart compute, and whoever calls the model
twice at a timestep for another reason goes on hitting."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn

import dit_cachegraph as dc
from dit_cachegraph.requests.match import AMBIGUOUS
from dit_cachegraph.step_log import StepReport
from support.toy_dits import DIM, NUM_TOKENS, CrossDiT, GatedBlock, JointDiT, ToyDiT

NUM_STEPS = 10
HITS = [0, 0, 1, 0, 1, 0, 1, 0, 1, 0]


class ClassDiT(ToyDiT):
    """Draws a class: a Python number, or a flag that says to draw none."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__([GatedBlock() for _ in range(4)])
        self.classes = nn.Embedding(10, DIM)

    def forward(self, hidden_states: Tensor, timestep: Tensor, label: int | bool) -> Tensor:
        number = 3 + 4 * label if isinstance(label, bool) else label
        h, temb = self.proj_in(hidden_states), self.embed(timestep) + self.classes.weight[number]
        for block in self.blocks:
            h = block(h, temb)
        return self.proj_out(h)


class TableDiT(ClassDiT):
    """Timestep and class come in one shape, and each from a table of its own."""

    def __init__(self) -> None:
        super().__init__()
        ends = torch.randn(2, DIM)
        table = torch.lerp(ends[:1], ends[1:], torch.linspace(0, 1, 100)[:, None])
        self.times = nn.Embedding.from_pretrained(table)

    def forward(self, hidden_states: Tensor, timestep: Tensor, label: Tensor) -> Tensor:
        temb = self.times(timestep.long()) + self.classes(label)
        h = self.proj_in(hidden_states)
        for block in self.blocks:
            h = block(h, temb[:, None])
        return self.proj_out(h)


class EditDiT(CrossDiT):
    """Gets a picture beside the latents, in one tensor."""

    def __init__(self) -> None:
        super().__init__(0, 4)
        self.proj_in = nn.Linear(2 * DIM, DIM)


def noise(seed: int, num_tokens: int = NUM_TOKENS) -> Tensor:
    return torch.randn(1, num_tokens, DIM, generator=torch.Generator().manual_seed(seed))


TEXTS = (noise(7), noise(8))
KINDS = {
    "text in the shape of the stream": (lambda: JointDiT(4), TEXTS),
    "a number": (ClassDiT, (3, 7)),
    "a flag": (ClassDiT, (False, True)),
    "a label that looks like a clock": (TableDiT, (torch.tensor([7]), torch.tensor([3]))),
    "a label that rises": (TableDiT, (torch.tensor([3]), torch.tensor([7]))),
}


EVEN = {"rule": "even", "every": 2}
BOLD = {"Fn_compute_blocks": 1, "max_warmup_steps": 1, "residual_diff_threshold": 1.0}


def compile_cached(model: nn.Module, settings: dict[str, object]) -> nn.Module:
    torch._dynamo.reset()
    options = {"inner_backend": "eager", **settings}
    return torch.compile(model, backend="cachedit", options=options)


def compile_even(model: nn.Module, **settings: object) -> nn.Module:
    return compile_cached(model, {**EVEN, **settings})


def timestep_of(step: int) -> Tensor:
    return torch.full((1,), 90.0 - 8 * step)


def draw(
    model: nn.Module, told: Sequence[object], hand_over: Callable[[Tensor], Tensor] = lambda x: x
) -> Iterator[tuple[Tensor, Tensor]]:
    """What each call of an image gives, and what it would give in eager."""
    latents = noise(0)
    for step in range(NUM_STEPS):
        with torch.no_grad():
            for what in told:
                given = (hand_over(latents), timestep_of(step), what)
                yield model(*given), model._orig_mod(*given)
        latents = torch.lerp(latents, noise(1), 0.05)


def steps_of(model: nn.Module, num: int) -> list[StepReport]:
    return list(dc.summary(model).steps)[-num:]


def hits_of(model: nn.Module, num: int) -> list[int]:
    return [int(step.hit) for step in steps_of(model, num)]


@pytest.mark.parametrize("hand_over", [lambda x: x, torch.clone], ids=["one object", "copies"])
@pytest.mark.parametrize("kind", KINDS)
def test_passes_that_nothing_tells_apart_compute(kind, hand_over):
    make, told = KINDS[kind]
    model = compile_even(make())
    for _ in range(2):
        for actual, expected in draw(model, told, hand_over):
            torch.testing.assert_close(actual, expected)
    assert not any(hits_of(model, 4 * NUM_STEPS))
    assert AMBIGUOUS in {step.reason for step in dc.summary(model).steps}


@pytest.mark.parametrize("settings", [{}, {"num_inference_steps": NUM_STEPS}], ids=str)
def test_they_compute_under_a_name_as_well(settings):
    model = compile_even(ClassDiT(), **settings)
    with dc.request("a name"):
        for actual, expected in draw(model, (3, 7)):
            torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("hand_over", [lambda x: x, torch.clone], ids=["one object", "copies"])
@pytest.mark.parametrize("settings", [EVEN, {**EVEN, "every": 3}, BOLD], ids=str)
def test_they_compute_from_the_step_on_at_which_guidance_begins(settings, hand_over):
    model, latents = compile_cached(ClassDiT(), settings), noise(0)
    for step in range(NUM_STEPS):
        for label in (3, 7) if step >= 4 else (3,):
            given = (hand_over(latents), timestep_of(step), label)
            with torch.no_grad():
                actual, expected = model(*given), model._orig_mod(*given)
            # At step 4 the first pass goes on with the image, as it always did.
            if (step, label) > (4, 3):
                torch.testing.assert_close(actual, expected)
        latents = torch.lerp(latents, noise(1), 0.05)
    assert any(hits_of(model, 16)[:4])
    assert not any(hits_of(model, 16)[5:])


@pytest.mark.parametrize("kind", KINDS)
def test_one_pass_hits(kind):
    make, told = KINDS[kind]
    model = compile_even(make())
    list(draw(model, told[:1]))
    assert hits_of(model, NUM_STEPS) == HITS


def test_passes_with_a_name_each_hit():
    model, latents = compile_even(ClassDiT()), noise(0)
    for step in range(NUM_STEPS):
        for label in (3, 7):
            with torch.no_grad(), dc.request(label):
                model(latents, timestep_of(step), label)
        latents = torch.lerp(latents, noise(1), 0.05)
    assert hits_of(model, 2 * NUM_STEPS) == [hit for hit in HITS for _ in range(2)]


def test_passes_with_a_text_each_hit():
    model = compile_even(CrossDiT(1, 4))
    list(draw(model, (noise(7, 4), noise(8, 4))))
    assert hits_of(model, 2 * NUM_STEPS) == [hit for hit in HITS for _ in range(2)]


class TurnedDiT(CrossDiT):
    """Turns a text by complex numbers."""

    def forward(self, hidden_states: Tensor, timestep: Tensor, rotation: Tensor) -> Tensor:
        text = (rotation * torch.complex(noise(7, 4), noise(8, 4))).imag
        return super().forward(hidden_states, timestep, text)


SQUARE = noise(9, DIM)
ROTATION = torch.polar(torch.ones(1, 4, DIM), noise(9, 4))
VIEWS = {
    "transposed": (CrossDiT, (SQUARE, SQUARE.mT)),
    "conjugated": (TurnedDiT, (ROTATION, ROTATION.conj())),
}


@pytest.mark.parametrize("kind", VIEWS)
def test_passes_with_another_view_of_one_text_each_hit(kind):
    make, texts = VIEWS[kind]
    model = compile_even(make(0, 4))
    for step, (actual, expected) in enumerate(draw(model, texts)):
        if not HITS[step // 2]:
            torch.testing.assert_close(actual, expected)
    assert hits_of(model, 2 * NUM_STEPS) == [hit for hit in HITS for _ in range(2)]


@pytest.mark.parametrize("is_named", [False, True], ids=["unnamed", "named"])
@pytest.mark.parametrize("is_in_place", [False, True], ids=["new latents", "in place"])
def test_a_timestep_that_is_evaluated_twice_hits(is_in_place, is_named):
    """Heun's sampler evaluates each timestep but the first at two places."""
    model, buffer = compile_even(ClassDiT()), noise(0)
    with dc.request("a name") if is_named else contextlib.nullcontext():
        for call in range(NUM_STEPS):
            latents = torch.lerp(noise(0), noise(1), 0.05 * call)
            with torch.no_grad():
                given = buffer.copy_(latents) if is_in_place else latents
                model(given, timestep_of((call + 1) // 2), 3)
    assert hits_of(model, NUM_STEPS) == HITS


@pytest.mark.parametrize("settings", [{}, {"enabled": False}, {"max_state_bytes": 0}], ids=str)
def test_a_seed_that_is_drawn_again_after_an_abort_between_two_evaluations(settings):
    """The call at the timestep of the abort is nearest to the last one before it, whether or not
    anything was held."""
    model = compile_even(ClassDiT(), **settings)
    with torch.no_grad():
        for call in (0, 1, 2, *range(NUM_STEPS)):
            step = (call + 1) // 2
            place = 0.1 * step - 0.02 * (call > 0 and call % 2 == 0)
            model(torch.lerp(noise(0), noise(1), place), timestep_of(step), 3)
    steps = steps_of(model, 3 + NUM_STEPS)
    assert [step.step for step in steps] == [0, 1, 2, *range(NUM_STEPS)]


@pytest.mark.parametrize("num_aborted", [1, 2])
@pytest.mark.parametrize("hand_over", [lambda x: x, torch.clone], ids=["one object", "copies"])
def test_a_seed_that_is_drawn_again_hits(num_aborted, hand_over):
    """Aborted after its first step, and drawn again with the very same noise."""
    model, first = compile_even(ClassDiT()), noise(0)
    with torch.no_grad():
        for _ in range(num_aborted):
            model(hand_over(first), timestep_of(0), 3)
        for step in range(NUM_STEPS):
            latents = hand_over(first) if step == 0 else torch.lerp(first, noise(1), 0.05 * step)
            model(latents, timestep_of(step), 3)
    steps = steps_of(model, NUM_STEPS)
    assert [int(step.hit) for step in steps] == HITS
    assert [step.reason for step in steps].count(AMBIGUOUS) == 1


@pytest.mark.parametrize("other", [torch.zeros(1, 64, DIM), noise(5, 64)], ids=["zeros", "other"])
@pytest.mark.parametrize("is_picture_first", [True, False], ids=["picture first", "then"])
def test_a_picture_beside_the_latents_tells_passes_apart(other, is_picture_first):
    """One text, one timestep: the passes get a picture, and zeros in its place."""
    model, text = compile_even(EditDiT()), noise(7, 4)
    pictures = [noise(4, 64), other] if is_picture_first else [other, noise(4, 64)]
    latents = noise(0, 64)
    with torch.no_grad():
        for step in range(NUM_STEPS):
            for picture in pictures:
                model(torch.cat([latents, picture], -1), timestep_of(step), text)
            latents = torch.lerp(latents, noise(1, 64), 0.05)
    assert [step.step for step in steps_of(model, 20)] == [i // 2 for i in range(2 * NUM_STEPS)]
    assert hits_of(model, 2 * NUM_STEPS) == [hit for hit in HITS for _ in range(2)]


def draw_written(model: nn.Module, texts: Sequence[Sequence[Tensor]]) -> list[tuple[Tensor, int]]:
    """An image whose texts, those of each step, are written into one buffer before each call, as
    for CUDA graphs. What each call gives, and the number of its step."""
    latents, buffer, drawn = noise(0), torch.empty(1, 4, DIM), []
    for step, of_step in enumerate(texts):
        for text in of_step:
            with torch.no_grad():
                output = model(latents, timestep_of(step), buffer.copy_(text))
            drawn.append((output, steps_of(model, 1)[0].step))
        latents = torch.lerp(latents, noise(1), 0.05)
    return drawn


def test_passes_that_are_written_into_one_buffer_hit_as_with_tensors_of_their_own():
    texts = (noise(7, 4), noise(8, 4))
    model = compile_even(CrossDiT(1, 4))
    own = [actual for actual, _ in draw(model, texts)]
    hits = hits_of(model, 2 * NUM_STEPS)
    model = compile_even(CrossDiT(1, 4))
    written = draw_written(model, [texts] * NUM_STEPS)
    torch.testing.assert_close([output for output, _ in written], own)
    assert hits_of(model, 2 * NUM_STEPS) == hits == [hit for hit in HITS for _ in range(2)]
    assert dc.summary(model).state_nbytes == 0  # The buffer is gone.


def test_a_prompt_that_is_written_over_half_way_is_another_request():
    model = compile_even(CrossDiT(1, 4))
    texts = [(noise(7 + (step >= 4), 4),) for step in range(NUM_STEPS)]
    steps = [step for _, step in draw_written(model, texts)]
    assert steps == [*range(4), *range(6)]
    assert hits_of(model, NUM_STEPS) == [*HITS[:4], *HITS[:6]]


def test_a_prompt_that_is_written_over_with_itself_hits():
    model = compile_even(CrossDiT(1, 4))
    steps = [step for _, step in draw_written(model, [(noise(7, 4),)] * NUM_STEPS)]
    assert steps == list(range(NUM_STEPS))
    assert hits_of(model, NUM_STEPS) == HITS
