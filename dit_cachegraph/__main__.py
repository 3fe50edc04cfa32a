"""`python -m dit_cachegraph`."""

import sys

from dit_cachegraph.cli import main

if __name__ == "__main__":
    sys.exit(main())
