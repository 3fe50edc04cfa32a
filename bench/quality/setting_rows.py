"""What was measured on a setting: the share of the work, and how near each picture came."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.quality.rows import append_line, read_lines

EQUAL_DB = 100.0
"""What is told of pictures that are equal, or nearer than this."""


@dataclass(frozen=True, slots=True)
class SettingRow:
    """One contender on one setting, on one half of the prompts. `psnr_db` is picture by picture,
    against the uncached ones of as many steps by the same solver; `version` is that of the
    weights, `machine` the machine with its software and commit."""

    setting: str
    half: str
    version: str
    contender: str
    camp: str
    options: str
    share: float
    psnr_db: Sequence[float]
    seconds: float
    machine: str

    @property
    def key(self) -> tuple[str, str, str, str, str, int]:
        """What a later run need not measure again."""
        name, options = self.contender, self.options
        return (self.setting, self.half, self.version, name, options, len(self.psnr_db))

    @property
    def mean_db(self) -> float:
        return statistics.fmean(self.psnr_db)

    @property
    def worst_db(self) -> float:
        return min(self.psnr_db)

    @property
    def tenth_percentile_db(self) -> float:
        """A tenth of the pictures are below it, by a line between the two nearest."""
        if len(self.psnr_db) == 1:
            return self.psnr_db[0]
        return statistics.quantiles(self.psnr_db, n=10, method="inclusive")[0]


def read_setting_rows(path: Path) -> list[SettingRow]:
    """Those written so far."""
    return [SettingRow(**line) for line in read_lines(path)]


def append_setting_row(path: Path, row: SettingRow) -> None:
    """At once, so that a run that is stopped loses nothing."""
    append_line(path, asdict(row))
