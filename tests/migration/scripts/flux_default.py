"""The defaults, in one line."""

import cache_dit

from migration.stand_ins import flux_prompt, load_flux

pipe = load_flux()
cache_dit.enable_cache(pipe)
(output,) = pipe(**flux_prompt())
stats = cache_dit.summary(pipe)
