"""A picture of what the steps of the last image saw and decided.

above    diff against the threshold, observed error against the tolerance; reused steps shaded
below    which blocks ran at which step
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dit_cachegraph.api import summary
from dit_cachegraph.freeze import last_images
from dit_cachegraph.report import Report
from dit_cachegraph.step_log import StepReport
from dit_cachegraph.targets import modules_in

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REUSE_COLOR, COMPUTE_COLOR, ERROR_COLOR = "#1a7f37", "#b35900", "#0969da"
WIDTH_INCHES, PANEL_INCHES, DPI = 9.0, 4.5, 100


def plot(target: object, path: str | Path) -> None:
    """Draw the last image of each guidance branch of `target` into the file `path`, in a format
    that its name tells (.png, .svg, .pdf); of several transformers one below the other.

    Raises:
        ValueError: no image has begun yet, or what it was drawn with is gone.
        ImportError: matplotlib is not installed.
    """
    _save([summary(module) for module in modules_in(target)], path)


def save_plot(report: Report, path: str | Path) -> None:
    """The same of the report of one model."""
    _save([report], path)


def _save(reports: Sequence[Report], path: str | Path) -> None:
    numbered = list(enumerate(reports, 1))
    drawn = [(n, report, image) for n, report in numbered for image in last_images(report.steps)]
    if not drawn:
        raise ValueError("nothing to plot: no image has begun yet")
    figure = _figure(len(drawn))
    panels = figure.subplots(
        2 * len(drawn), 1, squeeze=False, gridspec_kw={"height_ratios": [3, 1] * len(drawn)}
    )[:, 0]
    for i, (n, report, image) in enumerate(drawn):
        model = f"model {n}, " if len(reports) > 1 else ""
        _draw_numbers(panels[2 * i], image, report)
        panels[2 * i].set_title(f"{model}request {image[0].request}", size=10, loc="left")
        _draw_blocks(panels[2 * i + 1], image, _num_blocks(report))
    figure.tight_layout()
    figure.savefig(path, dpi=DPI)


def _num_blocks(report: Report) -> int:
    if not report.graphs:
        raise ValueError(
            "nothing to plot: the graphs of the last image are gone, as after "
            "`torch._dynamo.reset()`; draw once more"
        )
    return max(graph.num_blocks for graph in report.graphs)


def _figure(num_images: int) -> "Figure":
    # Optional; the class itself, since pyplot keeps figures in the process and may want a display.
    from matplotlib.figure import Figure  # noqa: PLC0415

    return Figure(figsize=(WIDTH_INCHES, PANEL_INCHES * num_images), dpi=DPI, facecolor="white")


def _draw_numbers(axes: "Axes", image: Sequence[StepReport], report: Report) -> None:
    """Diffs and errors over the steps, with what they are compared with."""
    settings = report.settings[-1] if report.settings else {}
    diffs = [step for step in image if step.diff is not None]
    errors = [step for step in image if step.observed_error is not None]
    _bound(axes, settings.get("residual_diff_threshold") if diffs else None, "threshold")
    # Over noise a tolerance is of a tenth of its range, and no bound of one error.
    is_bound = bool(errors) and settings.get("paced_over") == "steps"
    _bound(axes, settings.get("error_tolerance") if is_bound else None, "tolerance")
    axes.plot([s.step for s in diffs], [s.diff or 0 for s in diffs], color="0.75", zorder=1)
    for hit, color, label in ((True, REUSE_COLOR, "reuse"), (False, COMPUTE_COLOR, "compute")):
        some = [s for s in diffs if s.hit == hit]
        if some:
            heights = [s.diff or 0 for s in some]
            axes.scatter([s.step for s in some], heights, s=36, c=color, label=label, zorder=2)
    if errors:
        heights = [s.observed_error or 0 for s in errors]
        axes.plot([s.step for s in errors], heights, "D-", color=ERROR_COLOR, markersize=5,
                  linewidth=1, label="error that a reuse would have made")  # fmt: skip
    axes.set_ylabel("share of the stream")
    _finish(axes, len(image))
    axes.set_ylim(bottom=0)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9, ncols=4)


def _bound(axes: "Axes", value: object, label: str) -> None:
    if isinstance(value, float | int):
        axes.axhline(float(value), color="0.3", linestyle="--", linewidth=1, label=label)


def _draw_blocks(axes: "Axes", image: Sequence[StepReport], num_blocks: int) -> None:
    """One column a step, one row a block: green where it was reused."""
    for step in image:
        axes.bar(step.step, num_blocks, width=0.9, color=COMPUTE_COLOR, alpha=0.25)
        for start, stop in step.skipped:
            axes.bar(step.step, stop - start, bottom=start, width=0.9, color=REUSE_COLOR)
    axes.set_ylim(num_blocks, 0)
    axes.set_ylabel("block")
    axes.set_xlabel("step")
    _finish(axes, len(image))


def _finish(axes: "Axes", num_steps: int) -> None:
    axes.set_xlim(-0.6, num_steps - 0.4)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
