"""Settings for a quality budget or a compute budget, found on a few uncached runs and checked by
real ones."""
