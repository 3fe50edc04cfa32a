"""Threads of a run."""

import torch


def use_one_thread() -> None:
    """One thread for PyTorch's maths, so that CPU time is time."""
    torch.set_num_threads(1)
