"""Rewrites that go first: regions inlined, numbers where they are read, writes made plain."""
