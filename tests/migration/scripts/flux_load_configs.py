"""Settings from a file."""

from pathlib import Path

import cache_dit

from migration.stand_ins import flux_prompt, load_flux

settings = Path(__file__).with_name("cache.yaml")
pipe = load_flux()
cache_dit.enable_cache(pipe, **cache_dit.load_configs(str(settings)))
(output,) = pipe(**flux_prompt())
stats = cache_dit.summary(pipe)
