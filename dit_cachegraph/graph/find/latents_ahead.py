"""A list of blocks of what is denoised alone, before one that carries the text beside it.

FLUX.3 sends text, image and a reference picture each through blocks of its own, and then text and
pictures through joint ones:

    text.0 ... text.4         e                         reads nothing that is denoised: prologue
    image.0 ... image.4       h          (e passes by)  of the trunk
    reference.0 ... 4         r                         reads nothing that is denoised: prologue
    single.0 ... single.27    cat(h, r), e              of the trunk
"""

from torch import fx

from dit_cachegraph.graph.find.handed_on import Handover
from dit_cachegraph.graph.find.made_of_latents import is_of_another_picture
from dit_cachegraph.graph.fx_utils import is_concatenation


def is_of_latents_alone(between: Handover, made: frozenset[fx.Node]) -> bool:
    """True if a list hands over all that the next one carries of the latents, as it is or put into
    one with something, and the rest of what that carries has none in it; `made` is
    `made_of_latents`. A list that makes the text ready is none, and neither is one whose values are
    added to what passes by."""
    handed_over = set(between.returned)
    parts = {part for node in between.given for part in _parts(node)}
    return (
        any(node not in between.reached for node in between.given)
        and handed_over == parts & between.reached
        and handed_over <= made
        and all(is_of_another_picture(n, handed_over, made) for n in (parts & made) - handed_over)
    )


def _parts(node: fx.Node) -> list[fx.Node]:
    """What a value was put into one of; itself if it wasn't."""
    return node.all_input_nodes if is_concatenation(node) else [node]
