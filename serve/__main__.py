"""``python -m serve``: see :mod:`serve.cli`."""

import sys

from serve.cli import main

if __name__ == "__main__":
    sys.exit(main())
