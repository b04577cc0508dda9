"""The command line: `python -m reactor.observe SOCKET [COMMAND ...]`, and `--report`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from .. import __version__
from . import top as live
from .arguments import CommandLineParser
from .asking import TIMEOUT, ControlClient, NoAnswer
from .attaching import Attached
from .report import report
from .tables import TABLES, printable
from .trace_events import unpacked, write_whole
from .worker_commands import ASKED, PARENT
from .worker_commands import WORKER_COMMANDS as COMMANDS  # the commands of any socket, and all arguments

DESCRIPTION = """\
Inspect a running program through its control socket. The program opens it with

    from reactor import observe
    observe.serve_control(r, '/run/app.sock')"""
EPILOG = f"""\
commands (default: stats):
{chr(10).join(f'  {name:<10} {what}' for name, (what, _) in COMMANDS.items())}

With serve_control(r, PATH, workers=workers) in the parent of workers, {', '.join(ASKED)} are
answered by every worker; a worker that does not answer within a second is named.

examples:
  python -m reactor.observe /run/app.sock                       the counters of the program
  python -m reactor.observe /run/app.sock stats phases --watch 1
  python -m reactor.observe /run/app.sock handles --kind Stream --limit 20
  python -m reactor.observe /run/app.sock handles --worker 0    of one worker; {PARENT}: of the parent itself
  python -m reactor.observe /run/app.sock drain --drain-timeout 60   shut down without losing a request
  python -m reactor.observe /run/app.sock top                   a live table of the busiest and oldest connections
  python -m reactor.observe /run/app.sock trace slow.json       the last seconds of the flight recorder
  python -m reactor.observe --pid 1234 handles                  of a program that has no control socket (Python 3.14)
  python -m reactor.observe --report                            one page for a bug report

exit status: 0 success, 1 no answer or an error, 2 invalid arguments"""
INTERRUPTED = 130  # the exit status that a shell reports for a program ended by Ctrl-C
# Options that are sent as arguments of a command.
OPTIONS = 'limit', 'kind', 'worker', 'drain_timeout', 'lame_duck', 'sort', 'only'
ALONE = {'top': 'SOCKET top', 'trace': 'SOCKET trace FILE'}  # commands that cannot be combined with others


def seconds(text: str) -> float:
    """Convert an argument to a number of seconds above 0."""
    with suppress(ValueError):
        if 0 < float(text) <= 86400:
            return float(text)
    raise argparse.ArgumentTypeError(f'{text!r} is not a number of seconds above 0, at most 86400')


def parser() -> CommandLineParser:
    """Return the parser for all options."""
    top = CommandLineParser(
        'python -m reactor.observe',
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument('--version', action='version', version=f'reactor {__version__}')
    top.add_argument('socket', nargs='?', metavar='SOCKET', help='path of the control socket')
    top.add_argument('commands', nargs='*', metavar='COMMAND', help='commands to run, see below')
    top.add_argument(
        '--pid', type=int, help='instead of SOCKET: a process of the same user, without a control socket (Python 3.14)'
    )
    top.add_argument('--reactor', type=int, metavar='N', help='with --pid: which of several reactors, from 0')
    top.add_argument('--json', action='store_true', help='print each answer as one line of JSON')
    top.add_argument('--watch', type=seconds, metavar='SECONDS', help='repeat at this interval until Ctrl-C')
    top.add_argument(
        '--timeout', type=seconds, default=TIMEOUT, help=f'seconds to wait for an answer (default {TIMEOUT:g})'
    )
    top.add_argument('--limit', type=int, help='handles, why_alive: the number of entries to list')
    top.add_argument('--kind', help='handles: list only this kind, such as Stream')
    top.add_argument('--worker', metavar='NAME', help=f'ask only this worker, such as 0, or {PARENT}')
    top.add_argument(
        '--drain-timeout',
        type=float,
        metavar='SECONDS',
        help='drain: seconds until the remaining connections are reset',
    )
    top.add_argument('--lame-duck', type=float, metavar='SECONDS', help='drain: seconds to keep accepting connections')
    top.add_argument('--sort', metavar='KEY', help='top: the sort key')
    top.add_argument('--only', metavar='TEXT', help='top: list only connections whose address contains this text')
    top.add_argument('--once', action='store_true', help='top: print one table, of one second')
    top.add_argument('--report', action='store_true', help='print versions, limits and features for a bug report')
    return top


def requests(top: CommandLineParser, args: argparse.Namespace) -> list[tuple[str, dict[str, Any]]]:
    """Return the commands to send, each with its arguments. Exit with status 2 if an option does not fit them."""
    names = [name.replace('-', '_') for name in args.commands] or ['stats']
    for name in names:
        if name not in COMMANDS:
            top.error(f'unknown command {printable(name)!r}; the commands are {", ".join(COMMANDS)}')
        if name in ALONE and len(args.commands) > 1:
            top.error(f'{name} stands alone: python -m reactor.observe {ALONE[name]}')
        if args.watch and name in ('drain', 'help', *ALONE):
            top.error(f'{name} cannot be repeated; leave out --watch')
    if args.once and names != ['top']:
        top.error('--once is an option of top')
    given = {key: getattr(args, key) for key in OPTIONS if getattr(args, key) is not None}
    for key in given:
        if not any(key in COMMANDS[name][1] for name in names):
            *others, last = [name for name in COMMANDS if key in COMMANDS[name][1]]
            users = f'{", ".join(others)} and {last}' if others else last
            top.error(f'--{key.replace("_", "-")} is an option of {users}, not of {" or ".join(names)}')
    return [(name, {key: given[key] for key in given if key in COMMANDS[name][1]}) for name in names]


def look(client: ControlClient, asked: list[tuple[str, dict[str, Any]]], as_json: bool, before: list[Any]) -> list[str]:
    """Send each command once and return the lines to print. `before` holds the last answers and is updated."""
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
    """Send the commands and print the answers until interrupted. On a terminal, each output replaces the previous."""
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


def save_trace(top: CommandLineParser, args: argparse.Namespace) -> None:
    """Write the trace of the program's flight recorder to a file. Raises `NoAnswer`."""
    if len(args.commands) != 2 or args.watch or args.json:
        top.error('give the name of the file: python -m reactor.observe SOCKET trace FILE')
    with ControlClient(args.socket, args.timeout) as client:
        text = unpacked(client.ask('trace')['trace'])
    path = Path(args.commands[1])
    try:
        write_whole(path, text)
    except OSError as exc:
        raise NoAnswer(f'{path}: {exc.strerror}') from None
    print(f'{path}: open it at ui.perfetto.dev or www.speedscope.app')


def show_top(
    top: CommandLineParser, client: ControlClient, arguments: dict[str, Any], args: argparse.Namespace
) -> None:
    """Show the live table, or one table with --once. Raises `NoAnswer`."""
    if not args.once and not (sys.stdin.isatty() and sys.stdout.isatty()):
        top.error('top needs a terminal; --once prints one table')
    if not args.once:
        live.watch(client, arguments)
        return
    before = client.ask('top', **arguments)
    sleep(live.EVERY)
    answer = client.ask('top', **arguments)
    print(json.dumps(answer) if args.json else '\n'.join(live.lines(answer, before, 10_000)), flush=True)


def attached(args: argparse.Namespace) -> AbstractContextManager[object]:
    """With --pid, open a control socket in that process, and set `args.socket`. Raises `NoAnswer`."""
    if args.pid is None:
        return nullcontext()
    if args.socket is not None:
        args.commands = [args.socket, *args.commands]  # there is no SOCKET, so the first word is a command
    attached = Attached(args.pid, args.reactor, args.timeout)
    args.socket = attached.path
    return attached


def answer(top: CommandLineParser, args: argparse.Namespace) -> None:
    """Print the report, the answers, or both. Raises `NoAnswer`."""
    if args.commands[:1] == ['trace']:
        save_trace(top, args)
        return
    asked = requests(top, args)
    if args.report:
        print('\n'.join(report()))
        if args.socket is None:
            return
        asked = [('stats', {}), ('phases', {})] if not args.commands else asked
        print()
    with ControlClient(args.socket, args.timeout) as client:
        if args.commands == ['top']:
            show_top(top, client, asked[0][1], args)
            return
        if args.watch:
            watch(client, asked, args.json, args.watch)
        print('\n'.join(look(client, asked, args.json, [])), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    top = parser()
    args = top.parse_args(argv)
    if args.pid is None and args.reactor is not None:
        top.error('--reactor is for --pid')
    if args.socket is None and args.pid is None and not args.report:
        top.error('give the path of a control socket, which the program opens with observe.serve_control(r, PATH)')
    try:
        with attached(args):
            answer(top, args)
    except NoAnswer as exc:
        print(f'{top.prog}: {printable(exc)}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0 if args.watch or args.commands == ['top'] else INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
