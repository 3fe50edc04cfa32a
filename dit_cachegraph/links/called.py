"""What Dynamo calls for a block that was compiled alone.

The state of a call of the model lies among the variables of that call itself, on Python's stack:
whatever becomes of the call, it dies with it, and each thread has its own.
"""

import weakref
from collections.abc import Sequence

from torch import Tensor, nn
from torch._dynamo.eval_frame import OptimizedModule

from dit_cachegraph.call_stack import outermost_call
from dit_cachegraph.calls import note_part
from dit_cachegraph.links.given import given_to
from dit_cachegraph.links.glue import stop_watching
from dit_cachegraph.links.kinds import Call, Kinds
from dit_cachegraph.links.link import Link

_NAME = "dit_cachegraph's call"  # No variable can be called so.


class _UnderWay:
    """Dies with the call of the model, and ends what has begun."""

    __slots__ = ("call",)

    def __init__(self, call: Call) -> None:
        self.call = call

    def __del__(self) -> None:
        self.call.end()


class CalledLink:
    """A link, and what is known of the models whose calls begin with it."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._kinds: weakref.WeakKeyDictionary[nn.Module, Kinds] = weakref.WeakKeyDictionary()

    def __call__(self, *args: object) -> Sequence[Tensor]:
        call = self._call()
        return self._link.function(*args) if call is None else call.run(self._link, args)

    def _call(self) -> Call | None:
        """The call of the model that is under way: the first link in it begins it."""
        frame = outermost_call()
        if frame is None:
            return None
        variables = frame.f_locals
        under_way = variables.get(_NAME)
        if isinstance(under_way, _UnderWay):
            note_part()
            return under_way.call
        stop_watching()
        called, args, kwargs = variables["self"], variables["args"], variables["kwargs"]
        model = called._orig_mod if isinstance(called, OptimizedModule) else called
        assert isinstance(model, nn.Module)
        if model not in self._kinds:
            self._kinds[model] = Kinds(model)
        given = given_to(model, args, kwargs)
        begun = self._kinds[model].begin(self._link, given)
        variables[_NAME] = _UnderWay(begun)
        return begun
