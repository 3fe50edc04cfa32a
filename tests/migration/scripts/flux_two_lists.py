"""Settings for each block list."""

import cache_dit
from cache_dit import (
    BlockAdapter,
    DBCacheConfig,
    ForwardPattern,
    ParamsModifier,
    TaylorSeerCalibratorConfig,
)

from migration.stand_ins import flux_prompt, load_flux

pipe = load_flux()
transformer = pipe.transformer
cache_dit.enable_cache(
    BlockAdapter(
        pipe=pipe,
        transformer=transformer,
        blocks=[transformer.transformer_blocks, transformer.single_transformer_blocks],
        forward_pattern=[ForwardPattern.Pattern_1, ForwardPattern.Pattern_1],
        params_modifiers=[
            ParamsModifier(
                cache_config=DBCacheConfig().reset(
                    Fn_compute_blocks=1, residual_diff_threshold=0.25
                ),
            ),
            ParamsModifier(
                cache_config=DBCacheConfig().reset(
                    Fn_compute_blocks=4, residual_diff_threshold=0.3
                ),
                calibrator_config=TaylorSeerCalibratorConfig(taylorseer_order=1),
            ),
        ],
    ),
    cache_config=DBCacheConfig(max_warmup_steps=4),
)
(output,) = pipe(**flux_prompt())
stats = cache_dit.summary(pipe)
