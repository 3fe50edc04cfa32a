"""One training run: steps, a running average of the weights, checkpoints that resume exactly.

The drawings of a step depend on the seed and the step's number alone.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Generator, Tensor

from bench.common.whole_file import save_whole
from bench.train.optimizers import make_optimizers, rate_share
from bench.train.shelf import Figures
from bench.train.tasks import Task

AVERAGE_DECAY = 0.998
STEPS_A_LINE = 20


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, and from which seed. A run ends at `minutes` or `num_steps`, earlier pieces
    of the same run counted in."""

    seed: int
    device: torch.device
    batch_size: int
    minutes: float = float("inf")
    num_steps: float = float("inf")

    def progress(self, step: int, seconds: float) -> float:
        """The share of the run that is over, after `step` steps and this time."""
        return max(step / self.num_steps, seconds / (60 * self.minutes))


class AnotherRun(ValueError):
    """A checkpoint that the plan can't go on with."""


class Trainer:
    """A run in progress. `before` has the figures of the runs that the weights it began with came
    from, oldest first; there are none where it began with random ones."""

    def __init__(self, task: Task, plan: Plan) -> None:
        torch.manual_seed(plan.seed)
        self.task, self.plan = task, plan
        self.model = task.build().to(plan.device).train()
        self.optimizers = make_optimizers(self.model)
        self.average = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.step, self.seconds, self.loss = 0, 0.0, float("nan")
        self.before: list[Figures] = []

    @property
    def progress(self) -> float:
        return self.plan.progress(self.step, self.seconds)

    def take_step(self) -> Tensor:
        """One step; its loss, still on the device."""
        start = time.monotonic()
        dice = Generator(self.plan.device).manual_seed(self.plan.seed * 10_000_019 + self.step)
        loss = self.task.loss(self.model, self.plan.batch_size, dice)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizers.step(rate_share(self.step, self.progress))
        self.step += 1
        self._take_average()
        self.seconds += time.monotonic() - start
        return loss.detach()

    @torch.no_grad()
    def _take_average(self) -> None:
        weight = 1 - min(AVERAGE_DECAY, self.step / (self.step + 10))
        current = [p.detach() for p in self.model.parameters()]
        torch._foreach_lerp_(list(self.average.values()), current, weight)

    def run(self, checkpoint: Path, seconds_a_checkpoint: float) -> None:
        """Trains to the end of the plan; prints a line and saves now and then."""
        next_save = self.seconds + seconds_a_checkpoint
        losses: list[Tensor] = []
        while self.progress < 1:
            losses.append(self.take_step())
            if len(losses) == STEPS_A_LINE:
                self._print(losses)
            if self.seconds >= next_save:
                next_save = self.seconds + seconds_a_checkpoint
                self.save(checkpoint)
        self.save(checkpoint)

    def _print(self, losses: list[Tensor]) -> None:
        """Also keeps a slow mean of the loss."""
        mean = torch.stack(losses).mean().item()
        losses.clear()
        self.loss = mean if self.loss != self.loss else 0.9 * self.loss + 0.1 * mean
        samples = self.step * self.plan.batch_size
        print(
            f"{self.progress:.1%}: step {self.step}, {samples} drawings, {self.seconds:.0f} s, "
            f"loss {mean:.4f} (slow mean {self.loss:.4f})",
            flush=True,
        )

    def save(self, checkpoint: Path) -> None:
        """Everything that resuming needs; a file is never half written."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizers": self.optimizers.state(),
            "step": self.step,
            "seconds": self.seconds,
            "loss": self.loss,
            "seed": self.plan.seed,
            "batch_size": self.plan.batch_size,
            "before": self.before,
        }
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        save_whole(state, checkpoint)

    def begin_with(self, weights: Path, before: Sequence[Figures]) -> None:
        """A new run, with the weights that the runs `before` left in place of random ones."""
        kept = load_file(weights)
        self.model.load_state_dict({name: weight.float() for name, weight in kept.items()})
        self.average = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.before = list(before)

    def load(self, checkpoint: Path) -> None:
        """Goes on where `save` stood.

        Raises:
            AnotherRun: the checkpoint is of another seed or batch size. One run has one of each:
                its figures give them for all of its steps.
        """
        state = torch.load(checkpoint, map_location=self.plan.device, weights_only=True)
        self._refuse_another(checkpoint, state)
        self.model.load_state_dict(state["model"])
        self.average = state["average"]
        self.optimizers.load(state["optimizers"])
        self.step, self.seconds, self.loss = state["step"], state["seconds"], state["loss"]
        self.before = state["before"]

    def _refuse_another(self, checkpoint: Path, state: Mapping[str, object]) -> None:
        plan = self.plan
        seed, batch_size = (state.get(name, "unknown") for name in ("seed", "batch_size"))
        if (seed, batch_size) != (plan.seed, plan.batch_size):
            raise AnotherRun(
                f"{checkpoint} is of seed {seed} and batch {batch_size}, not of seed {plan.seed} "
                f"and batch {plan.batch_size}: give the same --seed and --batch to go on with it, "
                "or --fresh to begin anew"
            )
