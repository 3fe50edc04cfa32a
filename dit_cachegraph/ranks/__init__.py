"""Ranks that share a sample decide as one: what they gather, and what they tell of themselves."""
