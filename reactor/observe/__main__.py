"""The command line: `python -m reactor.observe SOCKET [COMMAND ...]`, and `--report`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import suppress
from time import monotonic, sleep

from .. import __version__
from .arguments import CommandLineParser
from .asking import TIMEOUT, ControlClient, NoAnswer
from .commands import COMMANDS
from .report import report
from .tables import TABLES, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

DESCRIPTION = """\
Looks into a running program through its control socket, which the program opens with

    from reactor import observe
    observe.serve_control(r, '/run/app.sock')"""
EPILOG = f"""\
commands (by default stats):
{chr(10).join(f'  {name:<10} {what}' for name, (what, _) in COMMANDS.items())}

examples:
  python -m reactor.observe /run/app.sock                       what it has counted
  python -m reactor.observe /run/app.sock stats phases --watch 1
  python -m reactor.observe /run/app.sock handles --kind Stream --limit 20
  python -m reactor.observe /run/app.sock drain --drain-timeout 60   end it without losing a request
  python -m reactor.observe --report                            one page for a bug report

exit status: 0; 1 when there was no answer, or an error for one; 2 for what was mistyped"""
INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended
OPTIONS = 'limit', 'kind', 'drain_timeout', 'lame_duck'  # the arguments of commands


def seconds(text: str) -> float:
    """A number of seconds above 0, for argparse."""
    with suppress(ValueError):
        if 0 < float(text) <= 86400:
            return float(text)
    raise argparse.ArgumentTypeError(f'{text!r} is not a number of seconds above 0')


def parser() -> CommandLineParser:
    """All options."""
    top = CommandLineParser(
        'python -m reactor.observe',
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument('--version', action='version', version=f'reactor {__version__}')
    top.add_argument('socket', nargs='?', metavar='SOCKET', help='path of the control socket')
    top.add_argument('commands', nargs='*', metavar='COMMAND', help='what to ask, see below')
    top.add_argument('--json', action='store_true', help='print the answers as they are, a line each')
    top.add_argument('--watch', type=seconds, metavar='SECONDS', help='ask again and again, until Ctrl-C')
    top.add_argument('--timeout', type=seconds, default=TIMEOUT, help=f'seconds for an answer (default {TIMEOUT:g})')
    top.add_argument('--limit', type=int, help='handles, why_alive: how many to tell')
    top.add_argument('--kind', help='handles: only those of this kind, such as Stream')
    top.add_argument('--drain-timeout', type=float, metavar='SECONDS', help='drain: until what is left is reset')
    top.add_argument('--lame-duck', type=float, metavar='SECONDS', help='drain: of these, how long to go on accepting')
    top.add_argument('--report', action='store_true', help='print versions, limits and features for a bug report')
    return top


def requests(top: CommandLineParser, args: argparse.Namespace) -> list[tuple[str, dict[str, Any]]]:
    """What to ask: commands with their arguments. Ends the program for what makes no sense."""
    names = [name.replace('-', '_') for name in args.commands] or ['stats']
    for name in names:
        if name not in COMMANDS:
            top.error(f'no command {printable(name)!r}; there are {", ".join(COMMANDS)}')
        if args.watch and name in ('drain', 'help'):
            top.error(f'{name} cannot be watched')
    given = {key: getattr(args, key) for key in OPTIONS if getattr(args, key) is not None}
    for key in given:
        if not any(key in COMMANDS[name][1] for name in names):
            top.error(f'--{key.replace("_", "-")} is for another command')
    return [(name, {key: given[key] for key in given if key in COMMANDS[name][1]}) for name in names]


def look(client: ControlClient, asked: list[tuple[str, dict[str, Any]]], as_json: bool, before: list[Any]) -> list[str]:
    """Ask everything once; the lines to print. `before` is what was answered last time, and then this time."""
    lines: list[str] = []
    answers: list[Any] = []
    for n, (name, arguments) in enumerate(asked):
        answer = client.ask(name, **arguments)
        answers.append(answer)
        if as_json:
            lines.append(json.dumps(answer))
        else:
            lines += [''] * bool(lines) + TABLES[name](answer, before[n] if before else None)
    before[:] = answers
    return lines


def watch(client: ControlClient, asked: list[tuple[str, dict[str, Any]]], as_json: bool, every: float) -> None:
    """Ask and print for ever: on a terminal in place, elsewhere one below the other."""
    in_place = sys.stdout.isatty() and not as_json
    before: list[Any] = []
    due = monotonic()
    while True:
        lines = look(client, asked, as_json, before)
        if in_place:
            print('\x1b[H' + ''.join(f'{line}\x1b[K\n' for line in lines) + '\x1b[J', end='', flush=True)
        else:
            print('\n'.join(lines if as_json else [*lines, '']), flush=True)
        due = max(due + every, monotonic())
        sleep(max(0.0, due - monotonic()))


def answer(top: CommandLineParser, args: argparse.Namespace) -> None:
    """Do what was asked for; `NoAnswer` when there is none."""
    asked = requests(top, args)
    if args.report:
        print('\n'.join(report()))
        if args.socket is None:
            return
        asked = [('stats', {}), ('phases', {})] if not args.commands else asked
        print()
    with ControlClient(args.socket, args.timeout) as client:
        if args.watch:
            watch(client, asked, args.json, args.watch)
        print('\n'.join(look(client, asked, args.json, [])), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    top = parser()
    args = top.parse_args(argv)
    if args.socket is None and not args.report:
        top.error('which socket? The one that the program opened with observe.serve_control(r, PATH)')
    try:
        answer(top, args)
    except NoAnswer as exc:
        print(f'{top.prog}: {printable(exc)}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0 if args.watch else INTERRUPTED
    except BrokenPipeError:  # who read it has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
