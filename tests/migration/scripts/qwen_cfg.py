"""Guidance with a call of its own for the negative prompt."""

import cache_dit
from cache_dit import DBCacheConfig

from migration.stand_ins import load_qwen, qwen_prompt

pipe = load_qwen()
cache_dit.enable_cache(
    pipe,
    cache_config=DBCacheConfig(
        Fn_compute_blocks=1,
        max_warmup_steps=3,
        residual_diff_threshold=0.25,
        enable_separate_cfg=True,
    ),
)
(output,) = pipe(**qwen_prompt())
stats = cache_dit.summary(pipe)
