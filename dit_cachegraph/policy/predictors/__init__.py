"""What to replay: one predictor a file, each a frozen dataclass of its options with `weights`."""
