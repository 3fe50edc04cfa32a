"""`python -m bench.quality_harm`: see `bench.quality.harm`."""

import sys

from bench.quality.harm import main

if __name__ == "__main__":
    main(sys.argv[1:])
