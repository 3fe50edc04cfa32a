"""`python -m dit_cachegraph`: the demo, the server, and the metrics."""

import argparse
import functools
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dit_cachegraph.demo.needs import SERVER_PACKAGES, what_is_missing
from dit_cachegraph.metrics import METRICS, CannotMeasure, measure
from dit_cachegraph.metrics.score import as_json, as_text
from dit_cachegraph.serving.api_key import api_key_given

NUM_PROMPTS_SHIPPED = 32


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0, or 2 where something that it needs is missing or what it
    was given can't be compared."""
    args = _parser().parse_args(arguments)
    refusal = {"demo": _demo, "metrics": _metrics, "serve": _serve}[args.command](args)
    if refusal is not None:
        print(f"error: {refusal}", file=sys.stderr)
    return 0 if refusal is None else 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dit_cachegraph")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_demo(commands)
    _add_metrics(commands)
    _add_serve(commands)
    return parser


def _add_demo(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    demo = commands.add_parser(
        "demo",
        help="draw the same pictures with and without the cache",
        description="Draws the same pictures with plain torch.compile, with the cache, and in as "
        "few steps as the cache computed, on the CPU and without any download; writes grid.png, "
        "steps.png and table.md.",
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


def _add_metrics(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    metrics = commands.add_parser(
        "metrics",
        help="compare pictures or clips",
        description="Compares pictures, clips, or folders of either, file by file of one name. "
        "Nothing is downloaded: where weights are missing, it says which file to put where.",
    )
    metrics.add_argument("name", choices=METRICS, metavar="NAME", help=", ".join(METRICS))
    metrics.add_argument("reference", type=Path, metavar="REFERENCE")
    metrics.add_argument("candidates", type=Path, nargs="+", metavar="CANDIDATE")
    metrics.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="for clip_score and image_reward: one prompt a line, or a JSON list, in the order "
        "of the files' names",
    )
    metrics.add_argument("--json", action="store_true", help="print JSON, with each file's score")


def _add_serve(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    serve = commands.add_parser(
        "serve",
        help="draw over HTTP, with a page",
        description="Serves pictures over HTTP, with a page at /: by default the embedded model, "
        "on this machine alone and without any download. Where the environment variable "
        "DIT_CACHEGRAPH_API_KEY is set, clients have to give it.",
    )
    serve.add_argument(
        "--model", type=Path, metavar="PATH", help="the folder of a text-to-image pipeline"
    )
    serve.add_argument(
        "--size",
        type=_size,
        action="append",
        default=[],
        metavar="WxH",
        help="a size in pixels that the pipeline draws, as often as there are some; the first is "
        "the usual one. Each is drawn once before any request",
    )
    serve.add_argument("--host", default="127.0.0.1", help="address to listen at (%(default)s)")
    serve.add_argument("--port", type=_number_from(1, 65535), default=8000, help="(%(default)s)")
    serve.add_argument(
        "--workers",
        type=_number_from(1, 64),
        default=2,
        help="requests that are drawn at once, around one transformer (%(default)s)",
    )
    serve.add_argument(
        "--ray",
        action="store_true",
        help="serve on Ray, on the cluster that RAY_ADDRESS names or on this machine alone",
    )
    serve.add_argument(
        "--replicas",
        type=_range,
        metavar="N|MIN-MAX",
        help="with --ray: how many replicas, each with a transformer and workers of its own (1); "
        "from MIN to MAX as requests come and go",
    )


def _range(text: str) -> tuple[int, int]:
    """`2`, or `1-4`."""
    smallest, dash, largest = text.partition("-")
    largest = largest if dash else smallest
    if not (smallest.isdecimal() and largest.isdecimal() and 1 <= int(smallest) <= int(largest)):
        raise argparse.ArgumentTypeError(f"must be a number, or two as 1-4, got {text!r}")
    return int(smallest), int(largest)


def _size(text: str) -> tuple[int, int]:
    """`1024x768`."""
    width, cross, height = text.partition("x")
    if not (cross and width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"must be WIDTHxHEIGHT, as 1024x768, got {text!r}")
    return int(width), int(height)


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


def _demo(args: argparse.Namespace) -> str | None:
    """Draw and print; or what is missing for it."""
    missing = what_is_missing()
    if missing is not None:
        return missing
    refusal = _make_folder(args.out)
    if refusal is not None:
        return refusal
    # What the demo needs beside torch is optional; `what_is_missing` has looked for it.
    import transformers  # noqa: PLC0415

    from dit_cachegraph.demo.run import DemoSettings, run  # noqa: PLC0415
    from dit_cachegraph.demo.write import table, write  # noqa: PLC0415

    # It warns about image processors, which no part of the demo uses.
    transformers.logging.set_verbosity_error()
    result = run(DemoSettings(num_prompts=args.num_prompts, num_steps=args.steps))
    files = write(result, args.out)
    print("dit_cachegraph.summary(pipe), after the first pictures:\n")
    print(result.report)
    print(f"\n{table(result)}")
    print("written:", ", ".join(str(path) for path in files))
    return None


def _make_folder(folder: Path) -> str | None:
    """Make a folder to write to; or why that can't be, which is found before the minutes that
    drawing takes."""
    if folder.is_file():
        return f"--out {folder} is a file: give the name of a folder"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"--out {folder} can't be written to: {error}"


def _serve(args: argparse.Namespace) -> str | None:
    """Serve until told to stop; or what is missing for it."""
    on_ray = ("ray",) if args.ray else ()
    missing = what_is_missing("server", "ray" if on_ray else "serve", (*SERVER_PACKAGES, *on_ray))
    if missing is not None:
        return missing
    if args.replicas is not None and not args.ray:
        return "--replicas is for --ray: without it there is one server, with --workers"
    if args.size and args.model is None:
        return "--size is for a pipeline that --model names: the embedded model draws 64 x 64"
    if args.model is not None and not (args.model / "model_index.json").is_file():
        return f"{args.model} is no folder of a pipeline: it has no model_index.json"
    try:
        api_key_given()
    except ValueError as refusal:
        return str(refusal)
    if args.ray:
        _serve_on_ray(args)
        return None
    # Optional; `what_is_missing` has looked for it.
    from dit_cachegraph.serving.run import serve  # noqa: PLC0415

    serve(args.model, tuple(args.size), host=args.host, port=args.port, num_workers=args.workers)
    return None


def _serve_on_ray(args: argparse.Namespace) -> None:
    from dit_cachegraph.serving import on_ray  # noqa: PLC0415  # Optional, as above.

    model, sizes = args.model and args.model.resolve(), tuple(args.size)
    smallest, largest = args.replicas or (1, 1)
    replicas = on_ray.Replicas(
        smallest=smallest,
        largest=largest,
        num_workers=args.workers,
        num_gpus=on_ray.num_gpus_of(model),
    )
    make_studio = functools.partial(on_ray.studio_of, model, sizes)
    on_ray.serve_on_ray(make_studio, replicas, host=args.host, port=args.port)


def _metrics(args: argparse.Namespace) -> str | None:
    """Measure and print; or why that can't be."""
    try:
        scores = measure(args.name, args.reference, args.candidates, args.prompts)
    except CannotMeasure as refusal:
        return str(refusal)
    print(as_json(scores) if args.json else as_text(scores))
    return None
