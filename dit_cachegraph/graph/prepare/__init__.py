"""Rewrites that go first: checkpoints inlined, numbers where they are read, writes made plain."""
