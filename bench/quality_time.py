"""`python -m bench.quality_time`: see `bench.quality.times`."""

import sys

from bench.quality.times import main

if __name__ == "__main__":
    main(sys.argv[1:])
