"""Where a call first breaks its graph, why, and the smallest change that removes that break.

`compile_subgraph_reason` of a graph says what ended it, and nothing where Dynamo gave up the whole
frame, as it does for a loop that breaks in its body. So the call is traced up to the first break.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import fx
from torch._dynamo import config, error_on_graph_break
from torch._dynamo.exc import Unsupported, UserError

from dit_cachegraph.graph.find.check_fragment import ASKS_TO_EDIT, is_of_a_library

CAPTURES = ("capture_scalar_outputs", "capture_dynamic_output_shape_ops")
_TORCH = Path(torch.__file__).parent
_NEEDED = re.compile(r"Could not .*? data-dependent expression")
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')

_CHANGES = (
    *((name, f"set `torch._dynamo.config.{name} = True`") for name in CAPTURES),
    (
        "ata-dependent branching",
        "branch on a Python value that the caller gives, or compute both sides and pick by "
        "`torch.where`",
    ),
    ("graph_break()", "remove this call"),
    (
        "data-dependent expression",
        "give this number to the model as a Python value, pad and mask instead of cutting by it, "
        "or make the method that does it one operator (`dit_cachegraph.keep_whole`)",
    ),
    ("marked as skipped", "do this before the model is called, or let Dynamo trace the function"),
)


@dataclass(frozen=True, slots=True)
class GraphBreak:
    """A break: `file:line`, the reason in Dynamo's words, and what removes it. `then` is the one
    that follows where the change is a setting of Dynamo's, None where that makes one graph."""

    place: str
    reason: str
    change: str
    is_by_setting: bool
    then: "GraphBreak | None" = None

    def __str__(self) -> str:
        said = f"at {self.place}: {self.reason}; {self.change}"
        if not self.is_by_setting:
            return said
        if self.then is None:
            return f"{said}, which makes it one graph, as does `fullgraph=True`"
        return f"{said}; then it breaks {self.then}"


def first_break(call: Callable[[], Callable[[], object]]) -> GraphBreak | None:
    """The first break of what `call` makes anew for each trace; None if there is none."""
    found = _traced(call())
    if found is None or not found.is_by_setting:
        return found
    with config.patch(dict.fromkeys(CAPTURES, True)):
        then = _traced(call())
    return GraphBreak(found.place, found.reason, found.change, True, then)


def _traced(function: Callable[[], object]) -> GraphBreak | None:
    traced = torch.compile(function, backend=_as_it_is)
    try:
        error_on_graph_break(True)(traced)()
    except (Unsupported, UserError) as error:
        return _told(str(error))
    return None


def _as_it_is(gm: fx.GraphModule, _: Sequence[torch.Tensor]) -> Callable[..., object]:
    return gm.forward


def _told(message: str) -> GraphBreak:
    """From what Dynamo says: the reason, its hints, and the user's lines that led there."""
    said, _, frames = message.partition("from user code:")
    lines = [line.strip() for line in said.splitlines()]
    hints = [line.removeprefix("Hint: ") for line in lines if line.startswith("Hint: ")]
    file, place = _place_in(frames)
    if is_of_a_library(file):
        hints = [hint for hint in hints if not hint.startswith(ASKS_TO_EDIT)]
    known = next(((key, change) for key, change in _CHANGES if key in said), None)
    key, change = known or ("", hints[0] if hints else "move it out of the model's call")
    needed = _NEEDED.search(said)
    reason = needed.group() if needed else lines[0].rstrip(".")
    return GraphBreak(place, reason, change, key in CAPTURES)


def _place_in(frames: str) -> tuple[str, str]:
    """The file, and `file:line`, of the innermost line that isn't torch's own."""
    found = [(Path(file), line) for file, line in _FRAME.findall(frames)]
    own = [frame for frame in found if _TORCH not in frame[0].parents] or found
    if not own:
        return "", "a place that Dynamo doesn't name"
    file, line = own[-1]
    return str(file), f"{file.name}:{line}"
