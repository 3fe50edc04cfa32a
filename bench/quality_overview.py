"""`python -m bench.quality_overview`: see `bench.quality.overview`."""

import sys

from bench.quality.overview import main

if __name__ == "__main__":
    main(sys.argv[1:])
