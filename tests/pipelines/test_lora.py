"""LoRA on a real pipeline: after any change of adapters the next image is that of the new weights,
and what was kept of the old ones is not replayed, also in the middle of an image."""

from collections.abc import Callable

import pytest
import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor
from torch._dynamo.utils import counters

import dit_cachegraph as dc
from support.drawing import FLUX, HITS, at_step, build, cached, draw
from support.running import relative_error

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute"),
]

RANK = 4
LONG = {"max_continuous_cached_steps": -1}
Change = Callable[[DiffusionPipeline], None]


@torch.no_grad()
def add_adapter(pipe: DiffusionPipeline, name: str, seed: int) -> None:
    """A seeded adapter that matters."""
    targets = ["to_q", "to_k", "to_v"]
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets)
    pipe.transformer.add_adapter(config, adapter_name=name)
    generator = torch.Generator().manual_seed(seed)
    for path, parameter in pipe.transformer.named_parameters():
        if f".{name}." in path:
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    pipe.transformer.requires_grad_(False)


def with_adapters() -> DiffusionPipeline:
    """Adapter a acts; b is there as well."""
    pipe = build()
    for seed, name in enumerate("ab"):
        add_adapter(pipe, name, seed)
    pipe.transformer.set_adapters("a")
    return pipe


def use(name: str, scale: float = 1.0) -> Change:
    return lambda pipe: pipe.transformer.set_adapters(name, scale)


def disable(pipe: DiffusionPipeline) -> None:
    pipe.transformer.disable_lora()


def enable(pipe: DiffusionPipeline) -> None:
    pipe.transformer.enable_lora()


def fuse(pipe: DiffusionPipeline) -> None:
    pipe.transformer.fuse_lora(adapter_names=["a"])


def unfuse(pipe: DiffusionPipeline) -> None:
    pipe.transformer.unfuse_lora()


def fresh(change: Change) -> Tensor:
    """The same image by a pipeline of its own that knew nothing before."""
    pipe = with_adapters()
    change(pipe)
    return draw(cached(pipe, **LONG)).latents


def test_adapters_switched_fused_and_disabled():
    """Each first in the middle of an image, where a step computes that would have been reused, then
    for a whole one."""
    pipe = cached(with_adapters(), **LONG)
    images = [draw(pipe).latents]
    weights, graph = "the weights changed", "the graph changed"
    changes = (
        (use("b"), weights),
        (disable, graph),
        (enable, graph),
        (use("a"), weights),
        (fuse, graph),
        (unfuse, graph),
    )
    for change, reason in changes:
        changed = draw(pipe, callback_on_step_end=at_step(4, change))
        assert (changed.hits, changed.reasons[5]) == ("..HHH.HHHH", reason)
        drawn = draw(pipe)
        assert drawn.hits == "..HHHHHHHH"
        images.append(drawn.latents)
    a, b, off, on, a_again, fused, unfused = images
    assert torch.equal(on, b)
    assert torch.equal(a_again, a)
    assert relative_error(fused, a) < 1e-5
    assert relative_error(unfused, a) < 1e-5
    assert relative_error(b, fresh(use("b"))) < 1e-6
    assert relative_error(off, fresh(disable)) < 1e-6
    assert min(relative_error(x, y) for x, y in ((a, b), (a, off), (b, off))) > 1e-2
    assert dc.summary(pipe).refusals == ()


@pytest.mark.slow
def test_scales_of_an_adapter():
    """From its second value on Dynamo hands the scale over as a number, and nothing recompiles."""
    pipe = cached(with_adapters(), **LONG)
    images = []
    for scale in (1.0, 0.5, 0.8, 0.2):
        use("a", scale)(pipe)
        drawn = draw(pipe)
        assert drawn.hits == "..HHHHHHHH"
        images.append(drawn.latents)
    assert relative_error(images[-1], fresh(use("a", 0.2))) < 1e-6
    assert relative_error(images[-1], images[-2]) > 1e-2
    num_graphs = counters["stats"]["unique_graphs"]
    in_the_middle = draw(pipe, callback_on_step_end=at_step(4, use("a", 0.9)))
    assert in_the_middle.hits == "..HHH.HHHH"
    assert in_the_middle.reasons[5] == "the weights changed"
    assert counters["stats"]["unique_graphs"] == num_graphs


def of_adapter(seed: int) -> dict[str, Tensor]:
    """Weights of an adapter, as a file would hold them."""
    pipe = build()
    add_adapter(pipe, "a", seed)
    return get_peft_model_state_dict(pipe.transformer, adapter_name="a")


def load(pipe: DiffusionPipeline, seed: int, hotswap: bool = False) -> None:
    pipe.transformer.load_lora_adapter(
        of_adapter(seed), prefix=None, adapter_name="a", hotswap=hotswap
    )


def test_hot_swapped_adapters():
    """As diffusers says it: `enable_lora_hotswap`, load, compile, then swap without recompiling.
    PEFT writes through `.data`, which nothing shows: within an image `reset` has to be called."""
    pipe = build()
    pipe.transformer.enable_lora_hotswap(target_rank=RANK)
    load(pipe, 1)
    cached(pipe, **LONG)
    first = draw(pipe)
    num_graphs = counters["stats"]["unique_graphs"]
    load(pipe, 2, hotswap=True)
    second = draw(pipe)
    assert first.hits == second.hits == "..HHHHHHHH"

    def swap(pipe: DiffusionPipeline) -> None:
        load(pipe, 1, hotswap=True)
        dc.reset(pipe)

    assert draw(pipe, callback_on_step_end=at_step(4, swap)).hits == "..HHH..HHH"
    assert counters["stats"]["unique_graphs"] == num_graphs
    alone = build()
    load(alone, 2)
    assert relative_error(second.latents, draw(cached(alone, **LONG)).latents) < 1e-6
    assert relative_error(second.latents, first.latents) > 1e-2


def test_a_scale_given_with_the_call():
    """It is a number among the model's arguments, which blocks read as well."""
    pipe = cached(with_adapters())
    scaled = [draw(pipe, joint_attention_kwargs={"scale": s}) for s in (1.0, 0.5, 0.25)]
    assert [drawn.hits for drawn in scaled] == [HITS] * 3
    plain = with_adapters()
    dc.configure(pipe, residual_diff_threshold=0.0)
    arguments = {**FLUX.arguments(1), "joint_attention_kwargs": {"scale": 0.25}}
    computed = draw(pipe, joint_attention_kwargs={"scale": 0.25})
    assert "H" not in computed.hits
    assert relative_error(computed.latents, plain(**arguments)[0]) < 1e-5
    assert relative_error(scaled[2].latents, scaled[0].latents) > 1e-2
