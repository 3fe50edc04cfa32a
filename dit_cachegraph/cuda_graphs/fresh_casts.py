"""What autocast casts a weight to, which it keeps for as long as one is inside of it.

A graph that read such a copy would read freed memory later, and others would read what a capture
only was to make. Inductor's code has casts of its own; operators that run one by one ask autocast.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def fresh_casts() -> Iterator[None]:
    """What runs in here is given no cast of before, and leaves none."""
    is_kept = torch.is_autocast_cache_enabled()
    # The switch is for other threads, whose casts are kept beside ours; an autocast that begins in
    # here turns it on again.
    torch.set_autocast_cache_enabled(False)
    torch.clear_autocast_cache()
    try:
        yield
    finally:
        torch.clear_autocast_cache()
        torch.set_autocast_cache_enabled(is_kept)
