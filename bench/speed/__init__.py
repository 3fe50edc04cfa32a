"""Speed and compile time of our cache, of plain torch.compile and of eager."""
