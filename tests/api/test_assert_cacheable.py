"""`assert_cacheable`, what authors of models call: on models that can be cached, and what it says
of each way in which they can't."""

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from dit_cachegraph.testing import NotCacheable, assert_cacheable
from support.tiny_models import finish
from zoo.entry import TOKENS, Draw
from zoo.own_dits import FunctionsDiT, OwnDiT, ParallelDiT, PreNormDiT, TwiceDiT

DOCS = Path(__file__).resolve().parents[2] / "docs"
Inputs = dict[str, object]


def built(model: type[OwnDiT], **config: object) -> OwnDiT:
    torch.manual_seed(0)
    return finish(model(**{"num_layers": 4, **config}), seed=0)


def first_step(model: nn.Module, level: float = 950.0) -> Inputs:
    draw = Draw(model, seed=0)
    return {
        "hidden_states": draw.normal(*TOKENS),
        "timestep": torch.full([len(draw.text())], level),
        "encoder_hidden_states": draw.text(),
    }


def test_a_model_with_the_inputs_of_one_step():
    model = built(PreNormDiT)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    graph = assert_cacheable(model, first_step(model), fullgraph=True)
    assert (graph.num_blocks, graph.block_lists[0].name) == (4, "blocks")
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_model_in_half_precision():
    """Its sums come to other last bits in another order, which is no fault of the cache."""
    model = built(PreNormDiT).bfloat16()
    step = {n: v.bfloat16() if isinstance(v, Tensor) else v for n, v in first_step(model).items()}
    assert assert_cacheable(model, step).num_blocks == 4
    with pytest.raises(NotCacheable, match="off by"):
        assert_cacheable(model, step, tolerance=1e-4)


def test_a_model_with_a_function_of_the_step():
    """One module called many times."""
    model = built(TwiceDiT)
    inputs = first_step(model)
    steps = [
        {**inputs, "timestep": torch.full([2], 950.0 - 10 * i), "hidden_states": latents.clone()}
        for i in range(10)
        if isinstance(latents := inputs["hidden_states"], Tensor)
    ]
    assert assert_cacheable(model, steps.__getitem__).num_blocks == 8


def test_blocks_that_are_functions():
    model = built(FunctionsDiT)
    with pytest.raises(NotCacheable, match=r"are no modules: name the lists .* `trunk="):
        assert_cacheable(model, first_step(model))
    assert assert_cacheable(model, first_step(model), trunk=["weights"]).num_blocks == 4


class Forgetful(PreNormDiT):
    """Draws nothing: its last projection is zero, as many models begin."""

    def make_blocks(self, num_layers: int) -> None:
        super().make_blocks(num_layers)
        self.last = nn.Linear(self.proj_out.in_features, self.proj_out.in_features)

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor) -> Tensor:
        return h + self.last(super().trunk(h, temb, e))


class Counting(PreNormDiT):
    """What it gives depends on how often it was called."""

    def __init__(self, **config: object) -> None:
        super().__init__(**config)
        self.register_buffer("num_calls", torch.zeros(()))

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor) -> Tensor:
        self.num_calls += 1
        return super().trunk(h, temb, e) * self.num_calls


class Breaking(PreNormDiT):
    def trunk(self, h: Tensor, temb: Tensor, e: Tensor) -> Tensor:
        for block in self.blocks:
            h = block(h, temb, e)
            torch._dynamo.graph_break()
        return h


def forgetful() -> nn.Module:
    model = built(Forgetful)
    nn.init.zeros_(model.last.weight)
    return model


HERE = r"test_assert_cacheable\.py:\d+"
OWN = r"own_dits\.py:\d+"


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: built(PreNormDiT, is_sound=False), rf"writes in place \(`add_` at {OWN}\)"),
        (lambda: built(ParallelDiT, is_sound=False), rf"each feeds the next \(seen: .* at {OWN}"),
        (lambda: built(Breaking), rf"a graph break .* \(at {HERE}"),
        (forgetful, "changes the output by 0.0e"),
        (lambda: built(Counting), "off by|two calls with equal inputs differ"),
    ],
    ids=["write", "no_chain", "break", "forgetful", "counting"],
)
def test_what_is_said_of_a_model_that_fails(build: Callable[[], nn.Module], sentence: str):
    model = build()
    with pytest.raises(NotCacheable) as failed:
        assert_cacheable(model, first_step(model))
    assert re.search(sentence, str(failed.value)), str(failed.value)


def test_latents_without_a_thread():
    """Steps under noise of their own are no steps of one image."""
    model = built(PreNormDiT)

    def inputs(step: int) -> Inputs:
        generator = torch.Generator().manual_seed(step)
        new = torch.randn(TOKENS, generator=generator)
        return {**first_step(model, 950.0 - 20 * step), "hidden_states": new}

    with pytest.raises(NotCacheable, match="of 10 steps computed, and 2 should"):
        assert_cacheable(model, inputs)


def test_steps_that_dont_move():
    """Each is the first of an image once more, which `warmup` alone doesn't tell."""
    model = built(PreNormDiT)
    inputs = first_step(model)
    with pytest.raises(NotCacheable, match="10 were taken for the first of an image: latents and"):
        assert_cacheable(model, lambda _: inputs)


def test_a_model_that_is_compiled_already():
    """Its wrapper takes any arguments, of which nobody knows which are the latents."""
    model = built(PreNormDiT)
    compiled = cast(nn.Module, torch.compile(model))
    assert assert_cacheable(compiled, first_step(model)).num_blocks == 4


def test_inputs_without_a_timestep():
    model = built(PreNormDiT)
    inputs = first_step(model, level=0.0)
    with pytest.raises(ValueError, match="`timestep` is zero and can't fall"):
        assert_cacheable(model, inputs)


def test_the_example_of_the_docs(tmp_path):
    """As it stands, as a module of its own."""
    shown = re.findall(r"```python\n(.*?)```", (DOCS / "authors.md").read_text(), re.DOTALL)
    (example,) = [code for code in shown if "assert_cacheable" in code]
    file = tmp_path / "test_my_model.py"
    file.write_text(example)
    spec = importlib.util.spec_from_file_location("test_my_model", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.test_my_model_is_cacheable()
