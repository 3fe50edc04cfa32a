"""A fixed schedule."""

import cache_dit
from cache_dit import DBCacheConfig

from migration.stand_ins import flux_prompt, load_flux

pipe = load_flux()
cache_dit.enable_cache(
    pipe,
    cache_config=DBCacheConfig(
        Fn_compute_blocks=1,
        steps_computation_mask=cache_dit.steps_mask(
            compute_bins=[5, 2, 1, 1, 1],  # 10 steps
            cache_bins=[2, 2, 3, 3],  # 10 steps
        ),
        steps_computation_policy="static",
    ),
)
(output,) = pipe(**flux_prompt())
stats = cache_dit.summary(pipe)
