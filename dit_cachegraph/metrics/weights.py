"""Weights that others publish: where each library looks for them, and what to do if they are not
there. Nothing here opens a connection."""

from pathlib import Path

import torch

from dit_cachegraph.metrics.exc import CannotMeasure

CLIP_REPOSITORY = "openai/clip-vit-large-patch14"
TOKENIZER_REPOSITORY = "bert-base-uncased"


def alexnet() -> Path:
    """The backbone of LPIPS, where torchvision looks for it."""
    return _found(
        _hub_checkpoints() / "alexnet-owt-7be5be79.pth",
        "lpips",
        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    )


def inception() -> Path:
    """The scripted network of FID: that of the original implementation, which resizes as that."""
    return _found(
        _hub_checkpoints() / "inception-2015-12-05.pt",
        "fid",
        "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"
        "inception-2015-12-05.pt",
    )


def clip() -> Path:
    """The folder of the CLIP model in the cache of Hugging Face."""
    return _snapshot(CLIP_REPOSITORY, "config.json", "clip_score")


def image_reward() -> tuple[Path, Path]:
    """The checkpoint of ImageReward and the settings of its text encoder. Its tokenizer has to be
    there as well, since the library would fetch it."""
    _snapshot(TOKENIZER_REPOSITORY, "vocab.txt", "image_reward")
    folder = Path.home() / ".cache" / "ImageReward"
    site = "https://huggingface.co/THUDM/ImageReward/resolve/main"
    checkpoint, settings = (
        _found(folder / name, "image_reward", f"{site}/{name}")
        for name in ("ImageReward.pt", "med_config.json")
    )
    return checkpoint, settings


def _hub_checkpoints() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _found(path: Path, metric: str, source: str) -> Path:
    if not path.is_file():
        raise CannotMeasure(
            f"{metric} needs weights that are not here and are not downloaded by themselves: get "
            f"{source} and put it at {path}"
        )
    return path


def _snapshot(repository: str, a_file: str, metric: str) -> Path:
    # Optional, and looked for by `measure`: it comes with transformers.
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415
    from huggingface_hub.constants import HF_HUB_CACHE  # noqa: PLC0415

    found = try_to_load_from_cache(repository, a_file)
    if not isinstance(found, str):
        raise CannotMeasure(
            f"{metric} needs {repository}, which is not here and is not downloaded by itself: run "
            f"hf download {repository} where there is a network, and put the folder "
            f"models--{repository.replace('/', '--')} into {HF_HUB_CACHE}"
        )
    return Path(found).parent
