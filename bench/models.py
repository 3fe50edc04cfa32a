"""`python -m bench.models`: see `bench.speed`."""

import sys

from bench.speed.__main__ import main

if __name__ == "__main__":
    main(sys.argv[1:])
