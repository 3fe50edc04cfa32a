"""When to reuse: one rule a file, each a frozen dataclass of its options with `decide`."""
