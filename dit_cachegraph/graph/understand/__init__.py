"""What each node belongs to, what the blocks carry, and what the arguments are."""
