"""`python -m attnbench` is `attnbench`."""

import sys

from attnbench.cli import main

if __name__ == "__main__":
    sys.exit(main())
