"""`python -m dit_cachegraph demo`: draws with and without the cache, and says what that changed."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dit_cachegraph.demo.needs import what_is_missing

NUM_PROMPTS_SHIPPED = 32


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0, or 2 where something that it needs is missing."""
    args = _parser().parse_args(arguments)
    missing = what_is_missing()
    if missing is not None:
        print(f"error: {missing}", file=sys.stderr)
        return 2
    _demo(args.out, args.num_prompts, args.steps)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dit_cachegraph")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser(
        "demo",
        help="draw the same pictures with and without the cache",
        description="Draws the same pictures with plain torch.compile and with the cache, on the "
        "CPU and without any download; writes grid.png, steps.png and table.md.",
    )
    demo.add_argument(
        "--out", type=Path, default=Path("demo_out"), help="folder to write to (%(default)s)"
    )
    demo.add_argument(
        "--num-prompts",
        type=_number_from(1, NUM_PROMPTS_SHIPPED),
        default=16,
        help=f"how many of the {NUM_PROMPTS_SHIPPED} prompts to draw (%(default)s)",
    )
    demo.add_argument(
        "--steps", type=_number_from(2, 1000), default=28, help="denoising steps (%(default)s)"
    )
    return parser


class _number_from:  # noqa: N801  # argparse names the type in its messages
    """A converter of argparse: an integer from `smallest` to `largest`."""

    def __init__(self, smallest: int, largest: int) -> None:
        self.smallest, self.largest = smallest, largest

    def __call__(self, text: str) -> int:
        if not text.isdecimal() or not self.smallest <= int(text) <= self.largest:
            raise argparse.ArgumentTypeError(
                f"must be an integer from {self.smallest} to {self.largest}, got {text!r}"
            )
        return int(text)


def _demo(out: Path, num_prompts: int, num_steps: int) -> None:
    # What the demo needs beside torch is optional; `what_is_missing` has looked for it.
    import transformers  # noqa: PLC0415

    from dit_cachegraph.demo.run import DemoSettings, run  # noqa: PLC0415
    from dit_cachegraph.demo.write import table, write  # noqa: PLC0415

    # It warns about image processors, which no part of the demo uses.
    transformers.logging.set_verbosity_error()
    result = run(DemoSettings(num_prompts=num_prompts, num_steps=num_steps))
    files = write(result, out)
    print("dit_cachegraph.summary(pipe), after the first pictures:\n")
    print(result.report)
    print(f"\n{table(result)}")
    print("written:", ", ".join(str(path) for path in files))
