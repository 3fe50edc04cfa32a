"""Why no CUDA graph can stand for a segment.

A graph replays what a device was told to do, twice more than a call asks for before it is captured,
and on copies of what the call is given:

    h + gate * mlp(norm(h))         may be captured
    x.add_(1)                       would be written to a copy
    dropout(h)                      would draw more often than the call did
    torch.arange(4).to(h.device)    is worked out on the host, where nothing is captured
"""

import torch

from dit_cachegraph.graph.fx_utils import line_of, storages_of, tensors_in, value_of
from dit_cachegraph.graph.node_effects import random_node, written_by
from dit_cachegraph.graph.structure import Structure


def why_eager(structure: Structure, device: torch.device) -> str | None:
    """The first cause among the nodes of a segment whose stream lies on `device`; None if there is
    none."""
    given = {storage for entry in structure.entries for storage in storages_of(entry)}
    for node in structure.nodes:
        if any(storages_of(written) & given for written in written_by(node)):
            return f"it writes in place to what it is given{line_of(node)}"
        if random_node(node) is not None:
            return f"it draws random numbers{line_of(node)}"
        others = {t.device.type for t in tensors_in(value_of(node)) if t.device != device}
        if others:
            return f"it works on {min(others)}{line_of(node)}"
    return None
