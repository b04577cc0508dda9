"""The argument parser of the package's command lines."""

from __future__ import annotations

import argparse


class CommandLineParser(argparse.ArgumentParser):
    """An `ArgumentParser` that reports an invalid argument in one line, without the usage, and exits with status 2."""

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(2, f'{self.prog}: {message} (see {self.prog} --help)\n')
