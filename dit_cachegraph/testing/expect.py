"""How a check fails: with a sentence that says what was seen."""


class NotCacheable(AssertionError):
    """A model can't be cached, or not with the results that it has without."""


def expect(condition: bool, sentence: str) -> None:
    if not condition:
        raise NotCacheable(sentence)
