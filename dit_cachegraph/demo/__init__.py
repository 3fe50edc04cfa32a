"""The demo: a small trained FLUX draws the same pictures with and without the cache."""
