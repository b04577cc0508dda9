"""The entry point of `python -m reactor.testing`."""

import sys

from .runs import main

if __name__ == '__main__':
    sys.exit(main())
