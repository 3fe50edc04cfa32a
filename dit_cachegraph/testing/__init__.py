"""For authors of models: a test that a model can be cached, for their own CI."""

from dit_cachegraph.testing.assert_cacheable import assert_cacheable
from dit_cachegraph.testing.expect import NotCacheable

__all__ = ["NotCacheable", "assert_cacheable"]
