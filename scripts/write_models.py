"""Check the zoo in `tests/zoo/`, and write what came of it to `docs/models.md`, and to the data
of `supported_pipelines`.

python scripts/write_models.py                 all of it, in some five minutes on two cores
python scripts/write_models.py flux lumina2    these entries; the rest of the table stays
"""

import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from zoo.checks import Result, check
from zoo.entries import ENTRIES
from zoo.entry import Entry
from zoo.table import SUPPORTED, TABLE, as_json, supported_in, table_of, with_rows


def main(names: list[str]) -> None:
    unknown = set(names) - {entry.name for entry in ENTRIES}
    if unknown:
        raise SystemExit(f"no such entries: {', '.join(sorted(unknown))}")
    if not names:
        TABLE.write_text(table_of([checked(entry) for entry in ENTRIES]))
    for entry in ENTRIES:
        if entry.name in names:
            TABLE.write_text(with_rows(TABLE.read_text(), [checked(entry)]))
    SUPPORTED.write_text(as_json(supported_in(TABLE.read_text())))


def checked(entry: Entry) -> Result:
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = check(entry)
    print(f"{entry.name}: {time.perf_counter() - start:.1f} s", flush=True)
    return result


if __name__ == "__main__":
    main(sys.argv[1:])
