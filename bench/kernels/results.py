"""What came out of one case of `bench.kernels`, and how it is told."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from bench.common.spread import Spread, paired_ratios, spread_of
from bench.common.table import table
from bench.kernels.cases import Case
from bench.kernels.forms import FORMS, OP
from bench.kernels.timing import COPY


@dataclass(frozen=True, slots=True)
class CaseResult:
    """`seconds` a call by form, and of the copy; `of_copy`: the copy's time to the form's, round by
    round, which is the share of the copy's bandwidth; `errors` against float64."""

    case: Case
    seconds: Mapping[str, Spread]
    of_copy: Mapping[str, Spread]
    errors: Mapping[str, float]

    def bandwidth(self, form: str) -> float:
        """Bytes a second, counted as if all were read and written once."""
        return self.case.nbytes / self.seconds[form].median


def case_result(
    case: Case, seconds: Mapping[str, Sequence[float]], errors: Mapping[str, float]
) -> CaseResult:
    """The medians of what was timed."""
    copy = seconds[COPY]
    return CaseResult(
        case=case,
        seconds={form: spread_of(times) for form, times in seconds.items()},
        of_copy={form: paired_ratios(copy, t) for form, t in seconds.items() if form != COPY},
        errors=dict(errors),
    )


def results_table(results: Sequence[CaseResult]) -> str:
    """One row a case: GB/s of copy and op, each form's share of the copy, the op's error."""
    header = ["op", "model", "batch", "dtype", "order", "MB", "us", "copy GB/s", "op GB/s"]
    rows = [[*header, *(f"{form}/copy" for form in FORMS), "error"]]
    for r in results:
        case, order = r.case, "-" if r.case.order is None else str(r.case.order)
        numbers = [
            f"{case.nbytes / 1e6:.1f}",
            f"{r.seconds[OP].median * 1e6:.1f}",
            f"{r.bandwidth(COPY) / 1e9:.1f}",
            f"{r.bandwidth(OP) / 1e9:.1f}",
        ]
        shares = [f"{r.of_copy[f].median:.2f}" if f in r.of_copy else "-" for f in FORMS]
        what = [case.op, case.model, str(case.batch), case.dtype, order]
        rows.append([*what, *numbers, *shares, f"{r.errors[OP]:.1g}"])
    return table(rows)


def progress(result: CaseResult) -> str:
    """One line as soon as a case is done."""
    op, copy = (result.bandwidth(form) / 1e9 for form in (OP, COPY))
    return f"{result.case}: {op:.1f} of {copy:.1f} GB/s"


def to_json(result: CaseResult) -> Mapping[str, object]:
    """All figures of a case as plain data."""
    figures = asdict(result)
    names = {"num_bytes": result.case.nbytes, "shape": result.case.shape}
    bandwidths = {form: result.bandwidth(form) for form in result.seconds}
    return {**figures, "case": figures["case"] | names, "bytes_per_second": bandwidths}
