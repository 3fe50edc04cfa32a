"""Each op of the kernels against its rivals."""
