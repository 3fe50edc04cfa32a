"""Check all of the zoo in `tests/models/`, and write what came of it to `docs/models.md` and to the
data of `supported_pipelines`."""

import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from models.checks import check
from models.table import SUPPORTED, TABLE, as_json, supported_in, table_of
from models.zoo import ENTRIES


def main() -> None:
    """Takes some five minutes on two cores."""
    results = []
    for entry in ENTRIES:
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results.append(check(entry))
        print(f"{entry.name}: {time.perf_counter() - start:.1f} s", flush=True)
    table = table_of(results)
    TABLE.write_text(table)
    SUPPORTED.write_text(as_json(supported_in(table)))


if __name__ == "__main__":
    main()
