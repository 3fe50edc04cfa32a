"""Two ranks that share each sample: what the cache saves them, and what agreeing costs."""
