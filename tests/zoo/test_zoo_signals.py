"""The modulated input of block 0, over every transformer of diffusers: each that has one feeds it
to a product of that block, and each that has none is refused with a sentence."""

import warnings

import pytest
import torch
from torch import Tensor, nn

import dit_cachegraph as dc
from dit_cachegraph.models import REGISTRY
from dit_cachegraph.testing.run import call
from zoo.entries import IMAGES, VIDEOS

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

# The timestep is a token of its own there, is added to the stream, or block 0 is one of the text's.
WITHOUT = frozenset(
    {
        "cosmos3",
        "dreamlite",
        "minimax_music3",
        "omnigen",
        "prior",
        "rvq_depth_decoder",
        "stable_audio",
        "transformer_2d",
        "transformer_temporal",
    }
)
# Not cached as a whole, or some of their conditioning is gone after a call, and so what it kept; or
# their blocks have a graph each, and none has the signal.
NOT_LOOKED_AT = frozenset(
    {
        "framepack",
        "glm_image",
        "hunyuan_image",
        "hunyuan_video15",
        "longcat_audio",
        "mochi",
        "nucleus",
        "proteina",
    }
)
CACHED = [e for e in (*IMAGES, *VIDEOS) if e.refusal is None and e.name not in NOT_LOOKED_AT]


def fed_to_products(entry, model: nn.Module, inputs) -> list[Tensor]:
    """What the linear layers and convolutions of the first block of each list are fed."""
    fed: list[Tensor] = []

    def note(module: nn.Module, args: tuple[object, ...]) -> None:
        fed.extend(arg.clone() for arg in args if isinstance(arg, Tensor))

    hooks = [
        module.register_forward_pre_hook(note)
        for name in entry.trunk
        for module in model.get_submodule(name)[0].modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    call(model, inputs)
    for hook in hooks:
        hook.remove()
    return fed


def kept_signals(model: nn.Module) -> list[Tensor]:
    (state,) = REGISTRY.states_of([model])
    tracks = [t for conditioning in state.requests._alive.values() for t in conditioning.tracks]
    return [track.state.regions[0].probe for track in tracks if track.state is not None]


def is_same(fed: Tensor, signal: Tensor) -> bool:
    return fed.numel() == signal.numel() and torch.allclose(
        fed.reshape(-1), signal.reshape(-1), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("entry", CACHED, ids=str)
def test_signal(entry):
    model = entry.build()
    (inputs,) = entry.steps(model, [0.95])
    fed = fed_to_products(entry, model, inputs)
    options = {"inner_backend": "eager", "rule": "teacache"}
    compiled = torch.compile(model, backend="cachedit", options=options)
    with warnings.catch_warnings(), entry.keep_whole():
        warnings.simplefilter("ignore", dc.NotCachedWarning)
        if entry.name in WITHOUT:
            with pytest.raises(dc.InvalidConfig, match="does not modulate|no matrix product"):
                call(compiled, inputs)
            return
        call(compiled, inputs)
    signals = kept_signals(model)
    assert signals
    assert all(any(is_same(one, signal) for one in fed) for signal in signals)
