"""A model that no list of models has."""

import cache_dit
from cache_dit import BlockAdapter, DBCacheConfig, ForwardPattern

from migration.stand_ins import OwnTransformer, own_loop

transformer = OwnTransformer()
cache_dit.enable_cache(
    BlockAdapter(
        transformer=transformer,
        blocks=transformer.blocks,
        forward_pattern=ForwardPattern.Pattern_3,
        check_forward_pattern=False,
    ),
    cache_config=DBCacheConfig(max_warmup_steps=3, residual_diff_threshold=0.2),
)
output = own_loop(transformer)
stats = cache_dit.summary(transformer)
