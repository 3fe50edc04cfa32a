"""`python -m bench.quality_report`: see `bench.quality.report`."""

import sys

from bench.quality.report import main

if __name__ == "__main__":
    main(sys.argv[1:])
