"""Functions that the command lines of the tools share: lists of names, and messages on standard error."""

import sys


def names(text):
    """Return the names in a comma-separated list."""
    return [name for name in text.split(',') if name]


def refuse_unknown(parser, chosen, known):
    """Exit with a usage error when a chosen name is unknown. `chosen` may be None."""
    if unknown := [name for name in chosen or () if name not in known]:
        parser.error(f'unknown: {", ".join(unknown)}; choose from {", ".join(known)}')


def say(text):
    """Print a message to standard error; standard output is only for results."""
    print(text, file=sys.stderr, flush=True)
