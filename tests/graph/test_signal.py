"""The modulated input of block 0 is what the model's own first norm gives, on real models; where
there is none, the rules that compare it are refused with a sentence."""

import pytest
import torch
from torch import nn

import dit_cachegraph as dc
from dit_cachegraph.models import REGISTRY
from oracles.signals import run_eagerly
from support.image_runs import image_of
from support.running import compile_cached, run_step
from support.tiny_models import DIT, FLUX, QWEN, SD3, SD35, WAN
from support.toy_dits import GatedBlock, JointDiT, ToyDiT, adding_dit, gated_dit
from support.toy_runs import run, toy_steps

pytestmark = pytest.mark.e2e
MODELS = [FLUX, SD3, SD35, WAN, QWEN, DIT]


def kept_signal(model):
    """What the last step left for the next one to compare with."""
    (state,) = REGISTRY.states_of([model])
    (conditioning,) = state.requests._alive.values()
    return conditioning.tracks[-1].state.regions[0].probe


@pytest.mark.parametrize("tiny", MODELS, ids=lambda tiny: tiny.name)
def test_is_what_the_model_modulates_at_each_step_reused_or_not(tiny):
    model = tiny.build(4)
    image = image_of(model, tiny, num_steps=5)
    eager = run_eagerly(model, tiny, image)
    compiled = compile_cached(model, teacache_threshold=1e9, max_warmup_steps=2)
    for i, kwargs in enumerate(image):
        ran = run_step(compiled, kwargs)
        assert ran.hit == (i >= 2), ran.reason
        torch.testing.assert_close(kept_signal(model), eager.signals[i], rtol=1e-5, atol=1e-5)
    step = dc.summary(compiled).steps[-1]
    assert step.skipped == ((0, 4),)


class WrittenBlock(GatedBlock):
    """The same, but for a write to the normalised stream that no node reads."""

    def forward(self, h, temb, e=None):
        shift, scale, gate = self.modulation(temb).chunk(3, dim=-1)
        x = self.norm(h)
        x.view(x.shape).mul_(1 + scale)
        x = x + shift
        return h + gate * self.down(torch.tanh(self.up(x)))


class NormWritingBlock(GatedBlock):
    """`write` is done to the normalised stream, before it is modulated or after, and the result of
    it is not read."""

    def __init__(self, write, when):
        super().__init__()
        self.write, self.when = write, when

    def forward(self, h, temb, e=None):
        shift, scale, gate = self.modulation(temb).chunk(3, dim=-1)
        x = self.norm(h)
        if self.when == "before":
            self.write(x)
        x = x * (1 + scale) + shift
        if self.when == "after":
            self.write(x)
        return h + gate * self.down(torch.tanh(self.up(x)))


def writing_block_dit(write, when):
    return ToyDiT([NormWritingBlock(write, when) for _ in range(3)])


def mul_method(x):
    x.mul_(3)


def mul_out(x):
    torch.mul(x, 3, out=x)


def mul_of_view(x):
    x.view(-1).mul_(3)


def mul_of_slice(x):
    x[:, 1:].mul_(3)


def silu_by_position(x):
    nn.functional.silu(x, True)


relu_module = nn.ReLU(inplace=True)


class PlainBlock(GatedBlock):
    """The timestep is added to the stream before the trunk, and modulates nothing."""

    def forward(self, h, temb, e=None):
        return h + self.down(torch.tanh(self.up(self.norm(h))))


class PlainDiT(ToyDiT):
    def trunk(self, h, temb, e):
        return super().trunk(h + temb, temb, e)


def compiled_toy(model, **settings):
    options = {"inner_backend": "eager", **settings}
    return torch.compile(model, backend="cachedit", options=options)


def plain_dit():
    return PlainDiT([PlainBlock() for _ in range(3)])


REFUSED = [
    (lambda: adding_dit(1, 2, 4), r"blocks\.0 has no matrix product on its stream"),
    (lambda: JointDiT(3), r"blocks\.0 does not modulate its input by the timestep"),
    (plain_dit, r"blocks\.0 does not modulate its input by the timestep"),
    (lambda: ToyDiT([WrittenBlock() for _ in range(3)]), r"acts on what leads to its modulated"),
]


@pytest.mark.parametrize(("build", "sentence"), REFUSED)
@pytest.mark.parametrize("rule", ["teacache", "seacache"])
def test_where_there_is_none_the_rule_is_refused_and_others_run(build, sentence, rule):
    model, steps = build(), toy_steps([90.0, 60.0, 30.0])
    compiled = compiled_toy(model, rule=rule)
    with pytest.raises(dc.InvalidConfig, match=sentence):
        run(compiled, steps[0])
    dc.configure(compiled, rule="even", max_warmup_steps=1)
    with pytest.raises(dc.InvalidConfig, match=sentence):
        dc.configure(compiled, rule=rule)
    for inputs in steps:
        run(compiled, inputs)
    assert [s.hit for s in dc.summary(compiled).steps] == [False, True, False]


PLAIN_WRITES = (mul_method, mul_out, relu_module)
OTHER_WRITES = (mul_of_view, mul_of_slice, silu_by_position)


@pytest.mark.parametrize("write", OTHER_WRITES)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_write_to_what_the_first_product_reads_is_refused(write, when):
    model, (inputs,) = writing_block_dit(write, when), toy_steps([90.0])
    compiled = compiled_toy(model, rule="teacache")
    with pytest.raises(dc.InvalidConfig, match="acts on what leads to its modulated input"):
        run(compiled, inputs)


def assert_measures_what_is_read(model):
    (inputs,) = toy_steps([90.0])
    run(compiled_toy(model, rule="teacache"), inputs)
    torch.testing.assert_close(kept_signal(model), read_by_first_product(model, inputs))


@pytest.mark.parametrize("write", PLAIN_WRITES)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_write_that_is_made_plain_is_measured(write, when):
    assert_measures_what_is_read(writing_block_dit(write, when))


@pytest.mark.parametrize("write", [*PLAIN_WRITES, *OTHER_WRITES])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_write_to_something_else_is_no_matter(write, when):
    assert_measures_what_is_read(writing_block_dit(lambda x: write(x + 1), when))


def read_by_first_product(model, inputs):
    """What the first linear layer of block 0 is given by the eager model."""
    read = []
    handle = model.blocks[0].up.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    run(model, inputs)
    handle.remove()
    return read[0]


def test_a_toy_whose_signal_is_known_in_closed_form():
    """shift = scale = sin(t) in every channel: the signal is norm(h) (1 + sin t) + sin t."""
    model = gated_dit(3)
    with torch.no_grad():
        for block in model.blocks:
            block.modulation.weight.copy_(torch.eye(8).repeat(3, 1))
            block.modulation.bias.zero_()
    compiled = compiled_toy(model, rule="teacache")
    for inputs, sine in zip(toy_steps([90.0, 30.0]), (1.0, 0.5), strict=True):
        run(compiled, inputs)
        normed = nn.functional.layer_norm(2 * inputs["hidden_states"], (8,))
        torch.testing.assert_close(kept_signal(model), normed * (1 + sine) + sine)
