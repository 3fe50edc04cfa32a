"""`block_range`: numbers of blocks, for options that take some."""

from dit_cachegraph.exc import InvalidConfig


def block_range(start: int, end: int, step: int = 1) -> list[int]:
    """`start`, every `step`-th block from there on, and the last one before `end`; and block 0,
    which cache-dit always computes.

    Raises:
        InvalidConfig: there is no such block.
    """
    if not 0 <= start < end or step < 1:
        raise InvalidConfig(f"block_range({start}, {end}, {step}) has no blocks")
    return sorted({0, *range(start, end, step), end - 1})
