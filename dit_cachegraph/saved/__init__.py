"""From disk to the first picture: what one process compiled, another one runs."""
