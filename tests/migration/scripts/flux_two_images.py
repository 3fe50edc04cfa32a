"""A server's transformer: no pipeline is cached, and each image is announced."""

import cache_dit
from cache_dit import DBCacheConfig

from migration.stand_ins import flux_prompt, load_flux

pipe = load_flux()
cache_dit.enable_cache(
    pipe.transformer,
    cache_config=DBCacheConfig(
        Fn_compute_blocks=1, max_warmup_steps=4, residual_diff_threshold=0.25
    ),
)
cache_dit.refresh_context(pipe.transformer, num_inference_steps=12)
pipe(**flux_prompt(first=4, num_steps=12))
cache_dit.refresh_context(pipe.transformer, num_inference_steps=20, max_warmup_steps=5)
(output,) = pipe(**flux_prompt())
stats = cache_dit.summary(pipe.transformer)
