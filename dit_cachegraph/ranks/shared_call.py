"""What a call shows of itself, on all ranks: one gather when it begins, before anything of it runs.

    rank 0   header | latents sample | timesteps
    rank 1   header | latents sample | timesteps

    header      whether all decide alike
    sample      of all ranks, where they differ: latents that come in parts are parts of one sample
    timesteps   rank 0's, and all are at the same

It has to come first. Where ranks go by other settings they look elsewhere, and one would wait here
while another waits in a block.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dit_cachegraph import ops
from dit_cachegraph.ranks.group import Ranks
from dit_cachegraph.ranks.standing import HEADER_SIZE, Standing, header_of, why_apart

OTHER_TIMESTEPS = "ranks are at other timesteps"


class SharedCall:
    """It is begun on all ranks, and read where the host needs it. How long it is follows from the
    shapes of the call, and from nothing that one rank alone knows."""

    def __init__(
        self,
        ranks: Ranks,
        samples: Sequence[Tensor],
        timesteps: Sequence[Tensor],
        standing: Standing,
    ) -> None:
        self._sizes = [t.numel() for t in timesteps]
        parts = [t.reshape(-1).float() for t in (*samples, *timesteps)]
        self.device = next((t.device for t in parts if t.is_cuda), torch.device("cpu"))
        header = ops.host_numbers(header_of(ranks.rank, standing))
        told = [part.to(self.device, non_blocking=True) for part in (header, *parts)]
        self._rows = ops.HostCopy([ranks.gather(torch.cat(told))])

    def read(self) -> tuple[Tensor | None, list[Tensor], str | None]:
        """The sample, if there is one, the timesteps, and why ranks may not decide alike, None
        where they do."""
        (rows,) = self._rows.read()
        num_timesteps = sum(self._sizes)
        num_samples = rows.shape[1] - HEADER_SIZE - num_timesteps
        headers, samples, timesteps = rows.split([HEADER_SIZE, num_samples, num_timesteps], dim=1)
        apart = why_apart(headers)
        if apart is None and not _are_equal(timesteps):
            apart = OTHER_TIMESTEPS
        sample = samples[0] if _are_equal(samples) else samples.reshape(-1)
        return sample if num_samples else None, list(timesteps[0].split(self._sizes)), apart


def _are_equal(rows: Tensor) -> bool:
    return bool((rows == rows[:1]).all())
