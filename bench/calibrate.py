"""`python -m bench.calibrate`: see `bench.quality.calibrate`."""

from bench.quality.calibrate import main

if __name__ == "__main__":
    main()
