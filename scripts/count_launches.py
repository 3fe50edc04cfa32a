"""The table of `docs/performance.md`: what the driver launches, waits for and moves at a step.

python scripts/count_launches.py       counted on the CPU
python scripts/count_launches.py -v    with the name of each operation
"""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from support.launch_modes import MODES, steady_steps


def main() -> None:
    """A row for each mode, of a hit and of a computed step."""
    for name, mode in MODES.items():
        with pytest.MonkeyPatch.context() as monkeypatch:
            steps = steady_steps(mode, monkeypatch)
        for is_hit in (True, False):
            counted = next(c for step, c in steps if step.hit == is_hit)
            kernels, waits, streams = counted.row
            kind = "hit" if is_hit else "computed"
            print(f"{name:<38} {kind:<9} {kernels} kernels, {waits} waits, {streams}S")
            if "-v" in sys.argv:
                for launch in counted.launches:
                    print(f"    {launch.name}: {launch.num_kernels}, {launch.num_streams}S")


if __name__ == "__main__":
    main()
