"""With torch.compile, in the documented order."""

import cache_dit
import torch
from cache_dit import DBCacheConfig

from migration.stand_ins import flux_prompt, load_flux

pipe = load_flux()
cache_dit.enable_cache(
    pipe,
    cache_config=DBCacheConfig(
        Fn_compute_blocks=1, max_warmup_steps=4, residual_diff_threshold=0.25
    ),
)
cache_dit.set_compile_configs(descent_tuning=False)
pipe.transformer = torch.compile(pipe.transformer)
(output,) = pipe(**flux_prompt())
stats = cache_dit.summary(pipe)
