"""Cut the graph along its blocks, share what is equal, compile each distinct piece."""
