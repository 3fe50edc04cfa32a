"""Each block for itself."""

import cache_dit
from cache_dit import DBPruneConfig

from migration.stand_ins import flux_prompt, load_flux

pipe = load_flux()
cache_dit.enable_cache(
    pipe,
    cache_config=DBPruneConfig(
        max_warmup_steps=4,
        Fn_compute_blocks=4,
        Bn_compute_blocks=2,
        residual_diff_threshold=0.12,
        non_prune_block_ids=[9],
    ),
)
(output,) = pipe(**flux_prompt())
stats = cache_dit.summary(pipe)
