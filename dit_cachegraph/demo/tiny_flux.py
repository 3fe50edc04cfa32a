"""The shipped model that draws 32 x 32 pictures, in a real `diffusers.FluxPipeline`.

Nothing is downloaded: weights, words and prompts lie in `dit_cachegraph/data/tiny_flux/`.
"""

import json
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import FluxPipeline, FluxTransformer2DModel

SIDE_PIXELS = 32
TOKENS_A_SIDE = 8
# Without a VAE the pipeline takes it that one is there that shrinks by 8, and packs 2 x 2.
SIDE_ARGUMENT = TOKENS_A_SIDE * 8 * 2
DATA = Path(str(resources.files("dit_cachegraph"))) / "data" / "tiny_flux"


def load_pipeline() -> "FluxPipeline":
    """A pipeline around a new copy of the model, in float32 on the CPU."""
    # Optional, and slow to import.
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline  # noqa: PLC0415

    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=_load_transformer(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _load_transformer() -> "FluxTransformer2DModel":
    # Optional, and slow to import.
    from diffusers import FluxTransformer2DModel  # noqa: PLC0415

    model = FluxTransformer2DModel(**json.loads((DATA / "config.json").read_text()))
    model.load_state_dict(_load_tensors("model.safetensors"))
    return model.eval().requires_grad_(False)


def _load_tensors(name: str) -> dict[str, Tensor]:
    """The tensors of a shipped file by name, in float32."""
    # Optional.
    from safetensors.torch import load_file  # noqa: PLC0415

    return {key: tensor.float() for key, tensor in load_file(DATA / name).items()}


def shipped_prompts() -> list[str]:
    """The 32 prompts of `prompts.json`."""
    return json.loads((DATA / "prompts.json").read_text())


def embed(prompts: Sequence[str]) -> Tensor:
    """Prompts of 8 known words each as [B, 8, 32]: the whole text encoder."""
    rows = {word: i for i, word in enumerate(json.loads((DATA / "words.json").read_text()))}
    embeddings = _load_tensors("words.safetensors")["embeddings"]
    return embeddings[torch.tensor([[rows[word] for word in p.split()] for p in prompts])]


def draw(
    pipe: "FluxPipeline",
    embeddings: Tensor,
    *,
    num_steps: int,
    on_step: Callable[[], object] | None = None,
) -> Tensor:
    """Pictures [B, 3, 32, 32], about in [-1, 1], for embedded prompts [B, 8, 32].

    Picture i starts from the noise of seed i, whatever the batch. `on_step` is called after each
    denoising step.
    """

    def after_step(_pipe: object, _step: int, _timestep: object, kwargs: dict) -> dict:
        if on_step is not None:
            on_step()
        return kwargs

    tokens = pipe(
        prompt_embeds=embeddings,
        pooled_prompt_embeds=embeddings.mean(1),
        height=SIDE_ARGUMENT,
        width=SIDE_ARGUMENT,
        num_inference_steps=num_steps,
        guidance_scale=0.0,
        generator=[torch.Generator().manual_seed(i) for i in range(len(embeddings))],
        output_type="latent",
        callback_on_step_end=after_step,
    ).images
    return pictures_from_tokens(tokens)


def pictures_from_tokens(tokens: Tensor) -> Tensor:
    """[B, 64, 48] -> [B, 3, 32, 32].

    A token is a 4 x 4 patch of pixels, split twice into 2 x 2: the model's latents are the picture
    after `pixel_unshuffle(2)`, and the pipeline packs 2 x 2 of those into one token.
    """
    split = tokens.view(-1, TOKENS_A_SIDE, TOKENS_A_SIDE, 3, 2, 2, 2, 2)
    # batch, token y, token x, colour, inner y, inner x, outer y, outer x
    pictures = split.permute(0, 3, 1, 6, 4, 2, 7, 5)
    return pictures.reshape(-1, 3, SIDE_PIXELS, SIDE_PIXELS)
