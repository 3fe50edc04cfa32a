"""Cache acceleration for diffusion transformers inside torch.compile."""
