"""The package's exceptions: each says what was seen and what to do about it."""


class CacheGraphError(Exception):
    """Base of everything this package raises on purpose."""


class InvalidConfig(CacheGraphError, ValueError):
    """A setting has a bad value or an unknown name; raised where the value was given."""


class UnknownTarget(CacheGraphError, TypeError):
    """`configure`, `summary` or `reset` was given something that holds no transformer."""


class CannotCut(CacheGraphError):
    """The graph can't be cut into blocks soundly. Caught in `backend.py` and turned into an
    `Uncacheable`: the model then runs compiled and uncached, with this sentence in the report."""


class NoBlocks(CannotCut):
    """There are no blocks in this graph: the model has none, or a graph break put them into
    others, and the sentence `tells_break`, where it is, or doesn't."""

    def __init__(self, sentence: str, *, tells_break: bool = False) -> None:
        super().__init__(sentence)
        self.tells_break = tells_break


class NotCached(CacheGraphError):
    """`check` was given a model whose last call didn't go through the cache; says why, and what
    helps."""


class NotCachedWarning(UserWarning):
    """A model runs compiled and uncached, and why."""


class CannotSave(CacheGraphError):
    """`precompile` or `export` was given something that can't be saved for another process; says
    what, and what to do."""


class CannotLoad(CacheGraphError):
    """`load_exported` was given a file that isn't whole, isn't one of `export` or was made
    elsewhere, or weights that don't fit; says what was seen, and what to do. In `load`, which
    compiles afresh then, it becomes a `NotLoadedWarning`."""


class RankLost(CacheGraphError, RuntimeError):
    """A rank that shares the sample with others is gone, or left a call that they are in; says
    which one, what it said of itself, and what to do."""


class NotLoadedWarning(UserWarning):
    """Something saved by `precompile` doesn't fit here, and why: the model is compiled afresh."""
