"""The rows of the quality bench as Markdown: whole, the best at a share of the work, and ours
beside cache-dit with the same options."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from bench.common.decibels import decibels
from bench.common.spread import Spread
from bench.quality.rows import Row

OURS, CACHE_DIT = "ours ", "cache-dit "
SHARES = (0.65, 0.55, 0.5, 0.4, 0.3)
# Who is compared, by how the names of their methods begin.
CAMPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "ours": (OURS,),
        "cache-dit": (CACHE_DIT,),
        "diffusers": ("diffusers ",),
        "fewer Euler steps": ("euler ",),
        "fewer second-order steps": ("adams-bashforth ", "unipc "),
    }
)
Value = Callable[[Row], float | None]


def to_uncached(row: Row) -> float | None:
    return row.psnr_db


def to_converged(row: Row) -> float | None:
    return row.psnr_db_converged


@dataclass(frozen=True, slots=True)
class Pair:
    """One method of ours and cache-dit's with the same options."""

    name: str
    ours: Row
    theirs: Row

    @property
    def lead_db(self) -> float:
        """Of ours, against the uncached pictures; 0 where both are equal to them."""
        ours, theirs = self.ours.psnr_db, self.theirs.psnr_db
        return 0.0 if ours == theirs else (ours or float("inf")) - (theirs or float("inf"))

    @property
    def is_equal(self) -> bool:
        """In every figure that a table shows."""
        return cells(self.ours) == cells(self.theirs)


def pairs_of(rows: Iterable[Row]) -> list[Pair]:
    """By the order of the rows."""
    by_name = {row.key.method: row for row in rows}
    return [
        Pair(name.removeprefix(OURS), row, by_name[CACHE_DIT + name.removeprefix(OURS)])
        for name, row in by_name.items()
        if name.startswith(OURS) and CACHE_DIT + name.removeprefix(OURS) in by_name
    ]


def whole_table(rows: Sequence[Row]) -> str:
    """By share, most first; ours and cache-dit's are one line where they are equal."""
    header = ["", "share", "PSNR, dB", "worst", "SSIM", "to 200 steps, dB", "SSIM"]
    equal = {pair.name for pair in pairs_of(rows) if pair.is_equal}
    lines = []
    for row in sorted(rows, key=lambda row: -row.share):
        name = row.key.method
        if name.removeprefix(CACHE_DIT) in equal:
            continue
        if name.removeprefix(OURS) in equal:
            name = f"{name.removeprefix(OURS)}: ours and cache-dit"
        lines.append([f"**{name}**" if " preset " in name else name, *cells(row)])
    return markdown([*header, "words read, %", "Fréchet"], lines)


def cells(row: Row) -> list[str]:
    """The figures of one method, as they are shown."""
    frechet = "" if row.frechet is None else f"{row.frechet:.1f}"
    shown = [f"{row.share:.2f}", *map(decibels, (row.psnr_db, row.psnr_db_worst))]
    shown += [f"{row.ssim:.4f}", decibels(row.psnr_db_converged)]
    shown.append(f"{row.ssim_converged:.4f}")
    return [*shown, f"{100 * row.agreement:.1f}", frechet]


def best_table(rows: Sequence[Row], value: Value) -> str:
    """The best of each camp that runs at most so much of the work."""
    lines = []
    for share in SHARES:
        found = [_best(rows, beginnings, share, value) for beginnings in CAMPS.values()]
        most = max((value(row) or 0.0 for row in found if row is not None), default=0.0)
        lines.append([f"{share:.2f}", *(_named(row, value, most) for row in found)])
    return markdown(["at most", *CAMPS], lines)


def _best(
    rows: Sequence[Row], beginnings: tuple[str, ...], share: float, value: Value
) -> Row | None:
    # Half an even number of steps is a share of 0.5 but for rounding.
    chosen = [
        row for row in rows if row.key.method.startswith(beginnings) and row.share <= share + 0.005
    ]
    return max(chosen, key=lambda row: value(row) or 0.0, default=None)


def _named(row: Row | None, value: Value, most: float) -> str:
    if row is None:
        return ""
    _, _, name = row.key.method.partition(" ")
    shown = decibels(value(row))
    return f"{f'**{shown}**' if value(row) == most else shown} ({name}, {row.share:.2f})"


def time_table(rows: Sequence[Row], timed: Mapping[str, Spread]) -> str:
    """Each timed method with its ratio to the uncached time, and the quality of its row."""
    by_name = {row.key.method: row for row in rows}
    header = ["", "CPU time (quartiles)", "share", "PSNR, dB", "to 200 steps, dB"]
    lines = []
    for name, ratio in sorted(timed.items(), key=lambda item: -item[1].median):
        share, psnr_db, _, _, converged, *_ = cells(by_name[name])
        lines.append([name, f"{ratio:.2f}", share, psnr_db, converged])
    return markdown(header, lines)


def parity_sentence(rows: Sequence[Row]) -> str:
    """How ours and cache-dit's come out where options are the same."""
    pairs = pairs_of(rows)
    equal = [pair for pair in pairs if pair.is_equal]
    text = f"Same options in ours and cache-dit: {len(pairs)}; equal in every figure: {len(equal)}."
    for pair in pairs:
        if not pair.is_equal:
            text += (
                f" {pair.name}: ours {pair.lead_db:+.1f} dB, at {pair.ours.share:.2f} of the work "
                f"against {pair.theirs.share:.2f}."
            )
    return text


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---"] * len(header)
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *lines))
