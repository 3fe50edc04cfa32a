"""Metrics of networks: their plumbing with random weights."""

import json
import math

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from scipy import linalg
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
)

from dit_cachegraph import cli
from dit_cachegraph.metrics import CannotMeasure, judge, networks, weights

SIDE = 32


def picture(seed, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, channels), np.uint8)


def folder_of(path, seeds):
    path.mkdir()
    for i, seed in enumerate(seeds):
        iio.imwrite(path / f"{i}.png", picture(seed))
    return path


def as_batch(*pictures):
    return torch.stack([torch.from_numpy(p).permute(2, 0, 1) for p in pictures])


class RandomLpips(nn.Module):
    """The distance of random features, called as LPIPS is."""

    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, 8, 5)

    def forward(self, one, two, normalize=False):
        assert normalize and one.min() >= 0 and one.max() <= 1
        moved = self.features(2 * one - 1) - self.features(2 * two - 1)
        return moved.square().mean((1, 2, 3), keepdim=True)


class RandomInception(nn.Module):
    """Random features of bytes, called as the scripted Inception network is."""

    def __init__(self):
        super().__init__()
        self.features = nn.Linear(3 * 4 * 4, 4)

    def forward(self, pictures: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        assert pictures.dtype == torch.uint8
        # Any size, as the real one: the library sends it a picture of 299 x 299 to see what comes.
        small = nn.functional.adaptive_avg_pool2d(pictures.float() / 255, 4)
        features = self.features(small.flatten(1))
        return features if return_features else features.softmax(1)


def test_lpips_is_the_networks_own_value(tmp_path):
    torch.manual_seed(0)
    network = RandomLpips()
    one, two = folder_of(tmp_path / "one", [0, 1]), folder_of(tmp_path / "two", [2, 1])
    (score,) = judge.by_pairs("lpips", networks.lpips_with(network), one, [two])
    batches = [as_batch(picture(seed)).float() / 255 for seed in (0, 2)]
    with torch.no_grad():
        expected = network(*batches, normalize=True).item()
    assert score.items == {"0": pytest.approx(expected), "1": 0.0}
    assert score.worst == score.items["0"]


def test_lpips_with_the_real_network():
    lpips = pytest.importorskip("lpips", reason="torchvision has no build for this torch")
    torch.manual_seed(0)
    network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    of_pairs = networks.lpips_with(network)
    assert of_pairs([(picture(0), picture(0))]) == 0.0
    one, two = (as_batch(picture(seed)).float() / 127.5 - 1 for seed in (0, 1))
    assert of_pairs([(picture(0), picture(1))]) == pytest.approx(network(one, two).item())


def frechet(one, two):
    """By the definition, with SciPy's matrix root."""
    means = [x.mean(0) for x in (one, two)]
    covariances = [np.cov(x, rowvar=False) for x in (one, two)]
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    return np.square(means[0] - means[1]).sum() + np.trace(sum(covariances) - 2 * root)


def test_fid_is_the_librarys_and_the_definition(tmp_path):
    torch.manual_seed(0)
    network = RandomInception()
    seeds = range(6), range(10, 18)
    paths = [folder_of(tmp_path / str(i), some) for i, some in enumerate(seeds)]
    (score,) = judge.by_sets("fid", networks.inception_with(network), paths[0], paths[1:])
    library = FrechetInceptionDistance(feature=networks.inception_with(network))
    features = []
    for real, some in zip((True, False), seeds, strict=True):
        pictures = as_batch(*map(picture, some))
        library.update(pictures, real=real)
        features.append(network(pictures, return_features=True).detach().double().numpy())
    assert score.items == {}
    assert score.value == pytest.approx(library.compute().item(), rel=1e-4)
    assert score.value == pytest.approx(frechet(*features), rel=1e-3)


def test_fid_of_a_set_with_itself_is_zero(tmp_path):
    path = folder_of(tmp_path / "p", range(8))
    features = networks.inception_with(RandomInception())
    (score,) = judge.by_sets("fid", features, path, [path])
    assert score.value == pytest.approx(0, abs=1e-5)


def test_fid_loads_a_scripted_network(tmp_path, no_weights, capsys):
    torch.manual_seed(0)
    network = RandomInception()
    one, two = folder_of(tmp_path / "one", range(4)), folder_of(tmp_path / "two", range(4, 8))
    arguments = ["metrics", "fid", str(one), str(two), "--json"]
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    target = error.split("put it at ")[1].strip()
    (tmp_path / "torch/hub/checkpoints").mkdir(parents=True)
    torch.jit.script(network).save(target)
    assert cli.main(arguments) == 0
    (row,) = json.loads(capsys.readouterr().out)
    (expected,) = judge.by_sets("fid", networks.inception_with(network), one, [two])
    assert row["value"] == pytest.approx(expected.value, rel=1e-5)


def test_fid_refuses_what_is_no_set():
    features = networks.inception_with(RandomInception())
    with pytest.raises(CannotMeasure, match="got 2 against 1"):
        networks.frechet_distance(features, [picture(0), picture(1)], [picture(2)])
    smaller = [picture(i)[:16, :16].repeat(2, 1).repeat(2, 0)[:SIDE, :16] for i in (2, 3)]
    with pytest.raises(CannotMeasure, match="one size"):
        networks.frechet_distance(_Means(), [picture(0), picture(1)], smaller)


def test_fid_refuses_pictures_against_clips(tmp_path):
    pictures = folder_of(tmp_path / "p", [0, 1])
    iio.imwrite(tmp_path / "clip.gif", np.stack([picture(0), picture(1)]))
    with pytest.raises(CannotMeasure, match=r"is pictures and .*clip\.gif is clips"):
        judge.by_sets("fid", nn.Identity(), pictures, [tmp_path / "clip.gif"])


class _Means(nn.Module):
    def forward(self, pictures):
        return pictures.float().mean((2, 3))


@pytest.fixture(scope="module")
def clip():
    """A CLIP with random weights that reads letters."""
    torch.manual_seed(1)
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[])
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    sizes["num_attention_heads"] = 2
    text = {**sizes, "vocab_size": len(tokens), "bos_token_id": 52, "eos_token_id": 53}
    text["max_position_embeddings"] = 12
    vision = {**sizes, "image_size": SIDE, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    crop = {"height": SIDE, "width": SIDE}
    pictures = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=crop)
    return CLIPModel(config).eval(), CLIPProcessor(image_processor=pictures, tokenizer=tokenizer)


def cosine(clip, prompt, pixels):
    model, processor = clip
    with torch.no_grad():
        text = model.get_text_features(**processor(text=[prompt], return_tensors="pt"))
        image = model.get_image_features(**processor(images=[pixels], return_tensors="pt"))
    return torch.cosine_similarity(text.pooler_output, image.pooler_output).item()


def test_clip_score_is_a_hundred_cosines(clip, tmp_path):
    path = folder_of(tmp_path / "p", [0, 1])
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red cat\na dog\n")
    first, second = judge.by_prompts("clip_score", networks.clip_with(*clip), [path, path], prompts)
    expected = [cosine(clip, "a red cat", picture(0)), cosine(clip, "a dog", picture(1))]
    assert list(first.items.values()) == pytest.approx([max(100 * c, 0) for c in expected])
    assert second.value == first.value == pytest.approx(np.mean(list(first.items.values())))
    assert any(c > 0 for c in expected)


def test_a_prompt_longer_than_clip_reads_is_cut(clip):
    score = networks.clip_with(*clip)
    assert score("a " * 100, picture(0)) == score("a " * 60, picture(0))


def test_clip_is_loaded_from_the_cache_of_its_hub(clip, tmp_path, no_weights, capsys, monkeypatch):
    path = folder_of(tmp_path / "p", [0])
    prompts = tmp_path / "prompts.json"
    prompts.write_text('["a red cat"]')
    arguments = ["metrics", "clip_score", str(path), str(path), "--prompts", str(prompts), "--json"]
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert f"hf download {weights.CLIP_REPOSITORY}" in error
    cache = tmp_path / "hub"
    assert f"put the folder models--openai--clip-vit-large-patch14 into {cache}" in error
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(cache))
    folder = cache / "models--openai--clip-vit-large-patch14"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0")
    clip[0].config.save_pretrained(folder / "snapshots" / "0")
    assert cli.main(arguments) == 2
    assert "snapshots/0 incomplete" in capsys.readouterr().err
    for part in clip:
        part.save_pretrained(folder / "snapshots" / "0")
    assert cli.main(arguments) == 0
    rows = json.loads(capsys.readouterr().out)
    expected = max(100 * cosine(clip, "a red cat", picture(0)), 0)
    assert [row["value"] for row in rows] == pytest.approx([expected] * 2, abs=1e-4)


class RandomReward(nn.Module):
    """Called as ImageReward is: a prompt and a picture of Pillow."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.randn(3))

    def score(self, prompt, image):
        colour = torch.from_numpy(np.array(image)).float().mean((0, 1))
        return (self.weights @ colour).item() - len(prompt)


def test_image_reward_is_the_models_own_score(tmp_path):
    torch.manual_seed(0)
    model = RandomReward()
    path = folder_of(tmp_path / "p", [0, 1])
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("x\nlonger")
    of_prompt = networks.image_reward_with(model)
    (score,) = judge.by_prompts("image_reward", of_prompt, [path], prompts)
    expected = [model.score("x", picture(0)), model.score("longer", picture(1))]
    assert list(score.items.values()) == pytest.approx(expected)
    assert score.worst == min(score.items.values())


def test_networks_judge_colour_of_8_bits():
    reward = networks.image_reward_with(RandomReward())
    with pytest.raises(CannotMeasure, match="got 1 channels of uint8"):
        reward("x", picture(0, channels=1))
    with pytest.raises(CannotMeasure, match="got 3 channels of uint16"):
        reward("x", picture(0).astype(np.uint16))
    assert math.isfinite(reward("x", picture(0)))
