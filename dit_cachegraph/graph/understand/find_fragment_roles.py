"""What a fragment without blocks sees of a call, for the fragment with the trunk.

Where Dynamo breaks a graph, the fragment that holds the blocks gets the timestep embedded and the
text refined, all of it new at every call. The fragment that embeds the timestep still has the
user's own tensors:

timesteps     reach a sinusoid and then a weight
latents       of the others, those of the most dimensions; the first of them, where all are alike
conditioning  the rest
"""

import torch
from torch import fx

from dit_cachegraph.graph.fx_utils import is_parameter, value_of
from dit_cachegraph.graph.understand.find_roles import is_embedded_by_sinusoid
from dit_cachegraph.plan import FragmentRoles


def find_fragment_roles(gm: fx.GraphModule) -> FragmentRoles | None:
    """The roles of the fragment's arguments, by index; None where it embeds no timestep."""
    arguments = gm.graph.find_nodes(op="placeholder")
    tensors = {
        i: value
        for i, node in enumerate(arguments)
        if not is_parameter(node) and isinstance(value := value_of(node), torch.Tensor)
    }
    timesteps = [i for i in tensors if is_embedded_by_sinusoid(arguments[i])]
    others = {i: value for i, value in tensors.items() if i not in timesteps}
    if not timesteps or not others:
        return None
    most = max(value.dim() for value in others.values())
    latents = [i for i, value in others.items() if value.dim() == most]
    if len(latents) == len(others):
        latents = latents[:1]
    conditioning = [i for i in others if i not in latents]
    return FragmentRoles(tuple(timesteps), tuple(latents), tuple(conditioning))
