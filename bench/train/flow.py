"""Rectified flow: `x = (1 - level) drawing + level noise`; the model learns `noise - drawing`."""

import torch
from torch import Generator, Tensor, nn

from bench.train.recipes import Recipe
from bench.train.world import word_table
from dit_cachegraph.demo.codec import encode

EMPTY_SHARE = 0.1  # of the prompts are empty (zeros), so that guidance has something to push off


def flow_loss(recipe: Recipe, model: nn.Module, count: int, dice: Generator) -> Tensor:
    """The mean squared error of the velocity on `count` new drawings, on the dice's device."""
    drawings, picks = recipe.world.draw(count, dice)
    latents = recipe.pack(encode(drawings))
    text = word_table(len(recipe.world.words)).to(dice.device)[recipe.world.word_indices(picks)]
    named = torch.rand(count, 1, 1, generator=dice, device=dice.device) >= EMPTY_SHARE
    level = spread_levels(recipe.mean_logit, count, dice)
    noise = recipe.start(torch.randn(latents.shape, generator=dice, device=dice.device))
    share = level.view(-1, *[1] * (latents.dim() - 1))
    mixed = torch.lerp(latents, noise, share)
    with torch.autocast("cuda", torch.bfloat16, enabled=dice.device.type == "cuda"):
        velocity = recipe.call(model, mixed, level, text * named)
    return (velocity.float() - (noise - latents)).square().mean()


def spread_levels(mean_logit: float, count: int, dice: Generator) -> Tensor:
    """[count] logit-normal noise levels, one from each of `count` equally likely ranges, so that
    one step's loss differs little from the next one's."""
    within = torch.rand(count, generator=dice, device=dice.device)
    share = (torch.arange(count, device=dice.device) + within) / count
    return torch.sigmoid(mean_logit + torch.special.ndtri(share.clamp(1e-4, 1 - 1e-4)))
