"""`python -m fsr`."""

import sys

from fsr.cli import main

if __name__ == "__main__":
    sys.exit(main())
