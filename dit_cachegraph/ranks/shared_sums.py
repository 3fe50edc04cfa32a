"""What a decision compares, added up over all ranks: one gather.

    rank 0   what is compared | sums, zeros
    rank 1   what is compared | sums, zeros

Ranks that got here decide alike so far. What may still differ is which controls of the caller are
the very objects of the last computed step, and so how many sums there are; how many numbers are
gathered doesn't depend on it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dit_cachegraph import ops
from dit_cachegraph.ranks.group import Ranks
from dit_cachegraph.ranks.standing import as_numbers

OTHER_SUMS = "ranks compare other controls"


def shared_sums(
    ranks: Ranks, sums: Sequence[Tensor], room: int, device: torch.device
) -> list[Tensor] | None:
    """The sums of all ranks, on the host; None where these aren't of the same. There are `room` of
    them at most."""
    sizes = [each.numel() for each in sums]
    is_too_much = sum(sizes) > room
    told = as_numbers("too much" if is_too_much else [each.shape for each in sums])
    head = ops.host_numbers(told)
    given = () if is_too_much else [each.reshape(-1).float() for each in sums]
    rest = ops.host_numbers([0.0] * (room - sum(part.numel() for part in given)))
    vector = torch.cat([part.to(device, non_blocking=True) for part in (head, *given, rest)])
    (rows,) = ops.HostCopy([ranks.gather(vector)]).read()
    heads, added = rows.split([len(head), room], dim=1)
    if is_too_much or not (heads == heads[:1]).all():
        return None
    total = added.double().sum(0)[: sum(sizes)].split(sizes)
    return [each.reshape(of.shape) for each, of in zip(total, sums, strict=True)]
