"""The older form, without configuration objects."""

import cache_dit

from migration.stand_ins import flux_prompt, load_flux

pipe = load_flux()
cache_dit.enable_cache(
    pipe,
    Fn_compute_blocks=1,
    Bn_compute_blocks=0,
    max_warmup_steps=6,
    residual_diff_threshold=0.25,
    enable_taylorseer=True,
    enable_encoder_taylorseer=True,
    taylorseer_order=1,
)
(output,) = pipe(**flux_prompt())
stats = cache_dit.summary(pipe)
