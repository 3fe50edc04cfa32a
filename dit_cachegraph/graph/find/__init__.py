"""Find the blocks: lists of modules or repeated code, and where a broken graph first breaks."""
