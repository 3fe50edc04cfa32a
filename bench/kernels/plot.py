"""The picture of `bench.kernels`: bytes against bandwidth, with the copy as the roof."""

from collections.abc import Sequence
from pathlib import Path

from bench.kernels.cases import OPS
from bench.kernels.forms import CACHE_DIT, COMPILED, EAGER, OP
from bench.kernels.results import CaseResult
from bench.kernels.timing import COPY

_STYLES = ((OP, "o"), (COMPILED, "x"), (EAGER, "+"), (CACHE_DIT, "1"))


def plot(results: Sequence[CaseResult], title: str, path: Path) -> None:
    """One panel an op."""
    # An optional package.
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(2, 4, figsize=(18, 8), sharex=True, sharey=True)
    roof = sorted((r.case.nbytes, r.bandwidth(COPY) / 1e9) for r in results)
    for axis in axes.flat[len(OPS) :]:
        axis.set_visible(False)
    for op, axis in zip(OPS, axes.flat, strict=False):
        axis.plot(*zip(*roof, strict=True), color="0.6", label="device copy, same bytes")
        for form, marker in _STYLES:
            own = [r for r in results if r.case.op == op and form in r.seconds]
            if own:
                xs, ys = [r.case.nbytes for r in own], [r.bandwidth(form) / 1e9 for r in own]
                axis.scatter(xs, ys, marker=marker, alpha=0.8, label=form)
        axis.set(title=op, xscale="log", xlabel="bytes", ylabel="GB/s")
        axis.legend(fontsize=8)
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
