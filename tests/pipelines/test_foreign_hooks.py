"""Hooks that diffusers puts on a model's modules: told by the true cause, with one warning, or the
cache works again once they are off."""

import warnings
from collections.abc import Callable

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.hooks import (
    FirstBlockCacheConfig,
    HookRegistry,
    LayerSkipConfig,
    apply_first_block_cache,
    apply_layer_skip,
)

import dit_cachegraph as dc
from support.drawing import FLUX, HITS, WAN, build, cached, draw
from support.tiny_pipelines import TinyPipeline

pytestmark = pytest.mark.e2e

CPU = torch.device("cpu")


def offload_in_groups(pipe: DiffusionPipeline) -> None:
    pipe.transformer.enable_group_offload(
        onload_device=CPU, offload_device=CPU, offload_type="leaf_level"
    )


def cast_by_layers(pipe: DiffusionPipeline) -> None:
    pipe.transformer.enable_layerwise_casting(
        storage_dtype=torch.bfloat16, compute_dtype=torch.float32
    )


def cache_by_its_function(pipe: DiffusionPipeline) -> None:
    apply_first_block_cache(pipe.transformer, FirstBlockCacheConfig(threshold=0.1))


def skip_layers(pipe: DiffusionPipeline) -> None:
    apply_layer_skip(pipe.transformer, LayerSkipConfig(indices=[0], fqn="blocks"))


def skip_no_layers(pipe: DiffusionPipeline) -> None:
    registry = HookRegistry.check_if_exists_or_initialize(pipe.transformer)
    registry.remove_hook("layer_skip_hook", recurse=True)


def warnings_of(pipe: DiffusionPipeline, tiny: TinyPipeline = FLUX) -> list[str]:
    """Those of two images of two steps, of which nothing is cached."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for seed in (1, 2):
            assert draw(pipe, seed, tiny, num_inference_steps=2).hits == ""
    return [str(w.message) for w in warned if w.category is dc.NotCachedWarning]


@pytest.mark.parametrize(
    ("put_on", "name", "helps"),
    [
        (offload_in_groups, "group_offloading", "call `pipe.enable_model_cpu_offload()`"),
        (cast_by_layers, "layerwise_casting", "leave `enable_layerwise_casting` out"),
        (cache_by_its_function, "fbc_block_hook", "take them off, by `diffusers.hooks.HookReg"),
    ],
)
def test_one_sentence_with_the_cause(
    put_on: Callable[[DiffusionPipeline], None], name: str, helps: str
):
    pipe = build()
    put_on(pipe)
    (warned,) = warnings_of(cached(pipe))
    assert name in warned and helps in warned
    report = dc.summary(pipe)
    (note,) = report.notes
    assert note.startswith("FluxTransformer2DModel carries hooks of diffusers on ")
    assert name in note and helps in note
    assert str(report).splitlines()[0] == note
    assert "torch.compiler.disable" not in str(report)
    with pytest.raises(dc.NotCached, match=name):
        dc.check(pipe)


def test_a_cache_of_diffusers_is_turned_off_by_its_own_call():
    """The warning says what the report does; the model is cached once that is done."""
    pipe = build()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    (warned,) = warnings_of(cached(pipe))
    assert "fbc_block_hook" in warned and "call `transformer.disable_cache()`" in warned
    assert "HookRegistry" not in warned
    (note,) = dc.summary(pipe).notes
    assert "call `transformer.disable_cache()`" in note
    pipe.transformer.disable_cache()
    torch._dynamo.reset()
    assert draw(pipe).hits == HITS


def test_layers_that_are_skipped_for_one_image():
    """What was compiled under the hooks fits the model without them; another model too."""
    pipe = cached(build(WAN))
    skip_layers(pipe)
    (warned,) = warnings_of(pipe, WAN)
    assert "layer_skip_hook" in warned and "take a guider that skips no layers" in warned
    skip_no_layers(pipe)
    assert draw(pipe, tiny=WAN).hits == ""
    other = cached(build(WAN))
    with pytest.warns(dc.NotCachedWarning, match="layer_skip_hook"):
        assert draw(other, tiny=WAN).hits == ""
    for each in (pipe, other):
        with pytest.raises(dc.NotCached, match="carried hooks of diffusers on .*layer_skip_hook"):
            dc.check(each)
    torch._dynamo.reset()
    assert draw(pipe, tiny=WAN).hits.count("H") == HITS.count("H") * WAN.num_branches
    dc.check(pipe)


def test_hooks_that_are_off_are_not_told():
    """Diffusers leaves a registry without hooks on the modules."""
    pipe = build(WAN)
    skip_layers(pipe)
    skip_no_layers(pipe)
    assert draw(cached(pipe), tiny=WAN).hits.count("H") == HITS.count("H") * WAN.num_branches
    assert dc.summary(pipe).notes == ()
    dc.check(pipe)
