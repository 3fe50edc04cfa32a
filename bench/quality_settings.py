"""`python -m bench.quality_settings`: see `bench.quality.measure_settings`."""

import sys

from bench.quality.measure_settings import main

if __name__ == "__main__":
    main(sys.argv[1:])
