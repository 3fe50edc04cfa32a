"""Trains a model or a reader from scratch, or goes on with it.

    python -m bench.train flux --minutes 90      FLUX, pictures of 64 x 64
    python -m bench.train wan --minutes 90       Wan, clips of 8 frames of 32 x 32
    python -m bench.train flux-reader            what reads the drawings of the first
    python -m bench.train wan-reader             and of the second

On a GPU a few minutes do. A run that was stopped goes on when the same command is given again;
one that is over goes on when more minutes are given. `--fresh` forgets the checkpoint. Without a
checkpoint, `--from-shelf` begins with the weights that the project keeps. How weights came about is
kept beside them in figures.json, with the runs before in "before" and the sum of all in "in_all".
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.common.machine import this_machine
from bench.train.shelf import Figures, kept_in, note_figures, runs_behind
from bench.train.tasks import TASKS, Task
from bench.train.trainer import AnotherRun, Plan, Trainer

RUNS = Path("train_out")
SECONDS_A_CHECKPOINT = 180.0


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; exits with a message where it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.train", description=__doc__)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--minutes", type=float, default=8.0, help="of training, in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=None, metavar="COUNT")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--fresh", action="store_true", help="begin anew")
    parser.add_argument("--from-shelf", action="store_true", help="begin with the kept weights")
    parser.add_argument("--runs", type=Path, default=RUNS, help="where checkpoints go")
    parser.add_argument("--shelf", type=Path, help="where models go")
    return parser.parse_args(arguments)


def make_plan(task: Task, parsed: argparse.Namespace) -> Plan:
    """What was asked for, with the task's batch where none was."""
    device = torch.device(parsed.device)
    usual = task.gpu_batch_size if device.type == "cuda" else task.batch_size
    return Plan(parsed.seed, device, parsed.batch or usual, minutes=parsed.minutes)


def figures_of(trainer: Trainer) -> Figures:
    """How the weights came about; those of a run that began with kept ones by all runs."""
    plan = trainer.plan
    command = f"python -m bench.train {trainer.task.name} --minutes {plan.minutes:g}"
    command += f" --seed {plan.seed} --batch {plan.batch_size} --device {plan.device}"
    figures: Figures = {
        "command": command + (" --from-shelf" if trainer.before else ""),
        "seed": plan.seed,
        "batch_size": plan.batch_size,
        "steps": trainer.step,
        "drawings": trainer.step * plan.batch_size,
        "minutes": round(trainer.seconds / 60, 1),
        "progress": round(trainer.progress, 3),
        "loss": None if math.isnan(trainer.loss) else round(trainer.loss, 4),
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "machine": str(this_machine()),
    }
    if trainer.before:
        runs = [*trainer.before, figures]
        figures |= {"in_all": in_all(runs), "before": trainer.before}
    return figures


def in_all(runs: Sequence[Figures]) -> Figures:
    """What several runs, each going on from the one before, come to."""
    return {
        "drawings": sum(run["drawings"] for run in runs),
        "minutes": round(sum(run["minutes"] for run in runs), 1),
    }


def begin(trainer: Trainer, parsed: argparse.Namespace, checkpoint: Path, folder: Path) -> None:
    """Takes up the checkpoint, else the kept weights if they were asked for, else neither."""
    if checkpoint.exists() and not parsed.fresh:
        trainer.load(checkpoint)
        print(f"goes on from step {trainer.step} of {checkpoint}")
    elif parsed.from_shelf:
        task = trainer.task
        trainer.begin_with(folder / task.weights, runs_behind(folder, task.name))
        print(f"begins with the weights in {folder}")


def main(arguments: Sequence[str]) -> None:
    parsed = parse_arguments(arguments)
    task = TASKS[parsed.task]
    checkpoint = parsed.runs / f"{task.name}.pt"
    folder = kept_in(task.folder, parsed.shelf)
    trainer = Trainer(task, make_plan(task, parsed))
    try:
        begin(trainer, parsed, checkpoint, folder)
    except AnotherRun as refusal:
        sys.exit(str(refusal))
    trainer.run(checkpoint, SECONDS_A_CHECKPOINT)
    task.put(folder, trainer.average)
    note_figures(folder, task.name, figures_of(trainer))
    print(f"{folder} holds the weights")


if __name__ == "__main__":
    main(sys.argv[1:])
