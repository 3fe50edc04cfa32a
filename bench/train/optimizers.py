"""Muon for the matrices inside the blocks, AdamW for all else, and one schedule for both."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn
from torch.optim import AdamW, Muon, Optimizer

ADAM_RATE, MUON_RATE = 2e-3, 5e-3  # Muon's steps are scaled to the size of Adam's
WARMUP_STEPS = 100
COOLDOWN = 0.35  # the last share of the run, in which the rate falls to zero


@dataclass(frozen=True, slots=True)
class Optimizers:
    """Both as one."""

    parts: tuple[Optimizer, ...]

    def step(self, share: float) -> None:
        """One step at this share of the peak rates; forgets the gradients."""
        for part in self.parts:
            peak = MUON_RATE if isinstance(part, Muon) else ADAM_RATE
            for group in part.param_groups:
                group["lr"] = peak * share
            part.step()
            part.zero_grad()

    def state(self) -> list[dict[str, object]]:
        return [part.state_dict() for part in self.parts]

    def load(self, states: Iterable[dict[str, object]]) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def make_optimizers(model: nn.Module) -> Optimizers:
    """Modulations in the blocks are left to AdamW, and so is all of a model without blocks."""
    in_blocks = {
        name: parameter
        for name, parameter in model.named_parameters()
        if "blocks." in name and ".norm" not in name and parameter.dim() == 2
    }
    rest = [p for name, p in model.named_parameters() if name not in in_blocks]
    adam = AdamW(rest, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    if not in_blocks:
        return Optimizers((adam,))
    matrices = in_blocks.values()
    muon = Muon(matrices, lr=MUON_RATE, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    return Optimizers((muon, adam))


def rate_share(step: int, progress: float) -> float:
    """Of the peak rates; `progress` is the share of the run that is over."""
    warmth = min(1.0, (step + 1) / WARMUP_STEPS)
    return warmth * min(1.0, max(0.0, 1 - progress) / COOLDOWN)
