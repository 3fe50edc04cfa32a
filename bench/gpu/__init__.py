"""What only a GPU can tell of this package, by one command."""
