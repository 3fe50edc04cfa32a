"""Rewrites that go first: numbers to where they are read, writes in place to plain ones."""
