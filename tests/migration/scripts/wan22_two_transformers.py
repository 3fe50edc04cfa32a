"""Two transformers with settings of their own, and guidance."""

import cache_dit
from cache_dit import BlockAdapter, DBCacheConfig, ForwardPattern, ParamsModifier

from migration.stand_ins import load_wan22, wan_prompt

pipe = load_wan22()
cache_dit.enable_cache(
    BlockAdapter(
        pipe=pipe,
        transformer=[pipe.transformer, pipe.transformer_2],
        blocks=[pipe.transformer.blocks, pipe.transformer_2.blocks],
        forward_pattern=[ForwardPattern.Pattern_2, ForwardPattern.Pattern_2],
        params_modifiers=[
            ParamsModifier(
                cache_config=DBCacheConfig().reset(max_warmup_steps=4, max_cached_steps=3)
            ),
            ParamsModifier(
                cache_config=DBCacheConfig().reset(max_warmup_steps=2, max_cached_steps=20)
            ),
        ],
        has_separate_cfg=True,
    ),
    cache_config=DBCacheConfig(
        Fn_compute_blocks=1, Bn_compute_blocks=0, residual_diff_threshold=0.35
    ),
)
(output,) = pipe(**wan_prompt())
stats = cache_dit.summary(pipe)
