"""DBCache with options."""

import cache_dit
from cache_dit import DBCacheConfig

from migration.stand_ins import flux_prompt, load_flux

pipe = load_flux()
cache_dit.enable_cache(
    pipe,
    cache_config=DBCacheConfig(
        max_warmup_steps=4,
        max_cached_steps=9,
        max_continuous_cached_steps=2,
        Fn_compute_blocks=2,
        Bn_compute_blocks=1,
        residual_diff_threshold=0.2,
    ),
)
(output,) = pipe(**flux_prompt())
stats = cache_dit.summary(pipe, details=True)
