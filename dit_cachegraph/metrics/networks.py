"""Metrics that a trained network makes: LPIPS, FID's features, CLIP score, ImageReward.

Each comes twice: loaded from weights that are here already, and around any network of the same
signature.
"""

import statistics
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dit_cachegraph.metrics import weights
from dit_cachegraph.metrics.exc import CannotMeasure
from dit_cachegraph.metrics.reading import Frame

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPProcessor

OfPairs = Callable[[Iterable[tuple[Frame, Frame]]], float]
OfPrompt = Callable[[str, Frame], float]


class RewardModel(Protocol):
    """What the package ImageReward loads."""

    def score(self, prompt: str, image: Image.Image) -> float: ...


def lpips() -> OfPairs:
    """With AlexNet, as the metric is mostly quoted."""
    weights.alexnet()
    try:
        # Optional. torchvision, which it needs, fails in many ways beside another torch.
        from lpips import LPIPS  # noqa: PLC0415
    except (ImportError, OSError, RuntimeError) as error:
        raise CannotMeasure(
            f"lpips cannot be imported ({error}): it needs the torchvision of this torch"
        ) from error
    return lpips_with(LPIPS(net="alex", verbose=False).eval())


def lpips_with(network: nn.Module) -> OfPairs:
    """The mean over frames of `network(reference, candidate, normalize=True)`, which takes
    [1, 3, H, W] in [0, 1]."""

    def of_pairs(pairs: Iterable[tuple[Frame, Frame]]) -> float:
        with torch.no_grad():
            return statistics.fmean(
                network(_unit(r), _unit(c), normalize=True).item() for r, c in pairs
            )

    return of_pairs


def inception() -> nn.Module:
    """The features of FID."""
    return inception_with(torch.jit.load(weights.inception(), map_location="cpu").eval())


def inception_with(network: nn.Module) -> nn.Module:
    """Around a network that takes uint8 [N, 3, H, W] and is asked for its features."""
    return _Features(network)


class _Features(nn.Module):
    """What `FrechetInceptionDistance` calls, with one argument."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pictures: Tensor) -> Tensor:
        return self.network(pictures, return_features=True)


def frechet_distance(
    features: nn.Module, reference: Iterable[Frame], candidate: Iterable[Frame]
) -> float:
    """Between the features of two sets of frames, of two or more each and all of one size."""
    # Optional, and slow to import.
    from torchmetrics.image.fid import FrechetInceptionDistance  # noqa: PLC0415

    distance = FrechetInceptionDistance(feature=features)
    counts, sizes = [0, 0], set()
    with torch.no_grad():
        for i, frames in enumerate((reference, candidate)):
            for frame in frames:
                distance.update(_bytes(frame), real=i == 0)
                counts[i] += 1
                sizes.add(frame.shape)
    if min(counts) < 2:
        raise CannotMeasure(
            f"fid compares sets of pictures and got {counts[0]} against {counts[1]}: two at "
            "least are needed, and thousands for a value that means something"
        )
    if len(sizes) > 1:
        raise CannotMeasure(f"fid needs pictures of one size, got {sorted(sizes)}")
    return distance.compute().item()


def clip() -> OfPrompt:
    """The score with the CLIP model that it is mostly quoted with."""
    # Optional, and looked for by `measure`.
    from transformers import CLIPModel, CLIPProcessor  # noqa: PLC0415

    folder = weights.clip()
    try:
        model = CLIPModel.from_pretrained(folder, local_files_only=True)
        processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
    except OSError as error:
        raise CannotMeasure(f"clip_score finds {folder} incomplete: {error}") from error
    return clip_with(model, processor)


def clip_with(model: "CLIPModel", processor: "CLIPProcessor") -> OfPrompt:
    """100 times the cosine of the picture's and the prompt's embedding, at least 0. Prompts are cut
    at what the model can read."""
    longest = model.config.text_config.max_position_embeddings

    def of_prompt(prompt: str, frame: Frame) -> float:
        inputs = processor(
            text=[prompt],
            images=[Image.fromarray(_rgb(frame))],
            return_tensors="pt",
            truncation=True,
            max_length=longest,
        )
        with torch.no_grad():
            outputs = model(**inputs)
        # Both have length 1.
        return max(100 * (outputs.image_embeds * outputs.text_embeds).sum().item(), 0.0)

    return of_prompt


def image_reward() -> OfPrompt:
    """ImageReward 1.0, by its own package."""
    checkpoint, settings = weights.image_reward()
    try:
        # Optional, and pins old versions of what it imports.
        from ImageReward import load  # noqa: PLC0415
    except (ImportError, OSError, RuntimeError) as error:
        raise CannotMeasure(
            f"ImageReward cannot be imported ({error}): give it an environment with the versions "
            "that it asks for"
        ) from error
    return image_reward_with(load(str(checkpoint), med_config=str(settings)))


def image_reward_with(model: RewardModel) -> OfPrompt:
    """The model's own score of a prompt and a picture."""

    def of_prompt(prompt: str, frame: Frame) -> float:
        with torch.no_grad():
            return float(model.score(prompt, Image.fromarray(_rgb(frame))))

    return of_prompt


def _rgb(frame: Frame) -> Frame:
    if frame.dtype != np.uint8 or frame.shape[-1] != 3:
        raise CannotMeasure(
            f"networks judge RGB of 8 bits, got {frame.shape[-1]} channels of {frame.dtype}"
        )
    return frame


def _bytes(frame: Frame) -> Tensor:
    """[1, 3, H, W] of uint8."""
    return torch.from_numpy(np.ascontiguousarray(_rgb(frame))).permute(2, 0, 1)[None]


def _unit(frame: Frame) -> Tensor:
    """[1, 3, H, W] in [0, 1]."""
    return _bytes(frame).float() / 255
