"""`python -m erase` and `accelerate launch -m erase` are the same as `erase`."""

import sys

from erase.cli import main

if __name__ == "__main__":
    sys.exit(main())
