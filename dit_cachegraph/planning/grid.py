"""The grid that a model's tokens lie on, for rules that filter over it."""

import math

from torch import Tensor

from dit_cachegraph.exc import InvalidConfig

NO_GRID = (
    "seacache filters over the grid of the tokens, which this model's input doesn't show: say it "
    "as seacache_grid=(height, width), in tokens"
)
PARTS_OF_A_GRID = (
    "seacache filters over the grid of all tokens, of which each rank of process group {group!r} "
    "may have a part (Ulysses, ring): take another rule there, such as teacache, which compares "
    "the same signal unfiltered, or split weights in place of tokens"
)
DIMS_WITH_A_GRID = (4, 5)
"""Of an image `[B, C, H, W]` and of a video `[B, C, F, H, W]`."""


def grid_of(latents: object, num_tokens: int) -> tuple[int, ...]:
    """The grid of the tokens of `[B, C, H, W]` or `[B, C, F, H, W]`, cut into square patches.

    Raises:
        InvalidConfig: there is none of so many tokens.
    """
    if isinstance(latents, Tensor) and latents.dim() in DIMS_WITH_A_GRID:
        *frames, height, width = latents.shape[2:]
        patch = math.isqrt(math.prod(latents.shape[2:]) // num_tokens)
        if patch > 0:
            grid = (*frames, height // patch, width // patch)
            if math.prod(grid) == num_tokens:
                return grid
    raise InvalidConfig(NO_GRID)
