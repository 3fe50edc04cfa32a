"""The shipped model that draws 64 x 64 pictures, in a real `diffusers.FluxPipeline`.

Nothing is downloaded: weights, words and prompts lie in `dit_cachegraph/data/flux-scenes/`.
"""

import json
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from dit_cachegraph.demo.codec import BLOCK, decode

if TYPE_CHECKING:
    from diffusers import FluxPipeline, FluxTransformer2DModel

Model = TypeVar("Model", bound=nn.Module)

TOKENS_A_SIDE = 8
SIDE_PIXELS = TOKENS_A_SIDE * BLOCK
# Without a VAE the pipeline takes it that one is there that shrinks by 8, and packs 2 x 2.
SIDE_ARGUMENT = TOKENS_A_SIDE * 8 * 2
DATA = Path(str(resources.files("dit_cachegraph"))) / "data" / "flux-scenes"


def load_pipeline() -> "FluxPipeline":
    """A pipeline around a new copy of the model, in float32 on the CPU."""
    # Optional, and slow to import.
    from diffusers import FluxTransformer2DModel  # noqa: PLC0415

    return pipeline_around(load_model(FluxTransformer2DModel, DATA))


def pipeline_around(transformer: "FluxTransformer2DModel") -> "FluxPipeline":
    """Without VAE and text encoder, with an Euler scheduler."""
    # Optional, and slow to import.
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline  # noqa: PLC0415

    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=transformer,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_model(model_class: Callable[..., Model], folder: Path) -> Model:
    """The model that a folder keeps: in float32, for inference."""
    model = model_class(**json.loads((folder / "config.json").read_text(encoding="utf-8")))
    model.load_state_dict(_load_tensors(folder / "model.safetensors"))
    return model.eval().requires_grad_(False)


def load_words(folder: Path) -> Tensor:
    """[words, 64]: the embedding of each word."""
    return _load_tensors(folder / "words.safetensors")["embeddings"]


def _load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, in float32."""
    # Optional.
    from safetensors.torch import load_file  # noqa: PLC0415

    return {key: tensor.float() for key, tensor in load_file(path).items()}


def shipped_prompts() -> list[str]:
    """The 32 prompts of `prompts.json`."""
    return json.loads((DATA / "prompts.json").read_text(encoding="utf-8"))


def embed(prompts: Sequence[str]) -> Tensor:
    """Prompts as [B, 6, 64], a row for each word that names something: the whole text encoder."""
    words = json.loads((DATA / "words.json").read_text(encoding="utf-8"))
    rows = {word: i for i, word in enumerate(words)}
    named = [[rows[word] for word in prompt.split() if word in rows] for prompt in prompts]
    return load_words(DATA)[torch.tensor(named)]


def draw(
    pipe: "FluxPipeline",
    embeddings: Tensor,
    *,
    num_steps: int,
    guidance: float = 1.0,
    on_step: Callable[[], object] | None = None,
) -> Tensor:
    """Pictures [B, 3, 64, 64], about in [-1, 1], for embedded prompts [B, 6, 64].

    Picture i starts from the noise of seed i, whatever the batch. With `guidance` above 1 each step
    has a second pass, with the empty prompt (zeros). `on_step` is called after each denoising step.
    """

    def after_step(_pipe: object, _step: int, _timestep: object, kwargs: dict) -> dict:
        if on_step is not None:
            on_step()
        return kwargs

    tokens = pipe(
        prompt_embeds=embeddings,
        pooled_prompt_embeds=embeddings.mean(1),
        negative_prompt_embeds=torch.zeros_like(embeddings),
        negative_pooled_prompt_embeds=torch.zeros_like(embeddings[:, 0]),
        true_cfg_scale=guidance,
        height=SIDE_ARGUMENT,
        width=SIDE_ARGUMENT,
        num_inference_steps=num_steps,
        guidance_scale=0.0,
        generator=[torch.Generator().manual_seed(i) for i in range(len(embeddings))],
        output_type="latent",
        callback_on_step_end=after_step,
    ).images
    return decode(unpack(tokens))


def unpack(tokens: Tensor) -> Tensor:
    """[B, 64, 48] -> [B, 48, 8, 8]."""
    return tokens.transpose(1, 2).unflatten(2, (TOKENS_A_SIDE, TOKENS_A_SIDE))
