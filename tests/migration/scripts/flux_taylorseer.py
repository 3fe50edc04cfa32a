"""DBCache with a forecast."""

import cache_dit
from cache_dit import DBCacheConfig, TaylorSeerCalibratorConfig

from migration.stand_ins import flux_prompt, load_flux

pipe = load_flux()
cache_dit.enable_cache(
    pipe,
    cache_config=DBCacheConfig(Fn_compute_blocks=4, residual_diff_threshold=0.24),
    calibrator_config=TaylorSeerCalibratorConfig(taylorseer_order=1),
)
(output,) = pipe(**flux_prompt())
stats = cache_dit.summary(pipe)
