"""The command line of the experiment: `python -m reactor.demo [serve | load]`."""

from __future__ import annotations

import argparse
import difflib
import errno
import json
import os
import re
import selectors
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .. import Reactor, ReactorError, __version__
from ..observe import source
from ..observe.arguments import CommandLineParser
from ..observe.live import LivePage
from .experiment import run_experiment
from .limits import raise_descriptor_limit, source_addresses
from .load import Load
from .progress import Progress, bar
from .server import serve
from .steady import SteadyLoad

SELECTORS: dict[str, Any] = {
    'default': selectors.DefaultSelector,
    'poll': getattr(selectors, 'PollSelector', None),
    'select': selectors.SelectSelector,
}
DASHBOARD, LOOPBACK = 9010, '127.0.0.1'
SLOW = 0.1  # seconds after which a callback is listed as slow on the live page
CONNECTIONS, STEADY_CONNECTIONS = 40000, 100  # defaults of `load` without and with --requests-per-second
OPENING: dict[str, Any] = {'rate': 6000, 'calls': 1, 'sources': None}  # options without --requests-per-second
STEADY: dict[str, Any] = {'seconds': 10, 'method': 'GET', 'path': '/'}  # options with --requests-per-second
JSON_HELP = 'print one JSON object instead of the {}; times in seconds, sizes in bytes'
INTERRUPTED = 130  # the exit status that a shell reports for a program ended by Ctrl-C

DESCRIPTION = """\
Without a command, run the whole experiment: start servers, hold all connections to them open at once, and print a
table. Each connection sends a request. The server waits for the delay on a timer, sends the answer, and closes the
connection in a write callback."""
EXAMPLES = """\
examples:
  python -m reactor.demo                            40,000 connections, at 6,000 a second
  python -m reactor.demo --connections 1000 --delay 1 --json
  python -m reactor.demo --dashboard                the same, with a live page
  python -m reactor.demo --connections 1000000      a million; it says first what that takes, and asks
  python -m reactor.demo serve --port 9009          only the server, which prints statistics once a second
  python -m reactor.demo load --connections 5000    only the load, against that server
  python -m reactor.demo load --port 8080 --connections 100 --requests-per-second 2000 --seconds 10
                                                    requests at a fixed rate to any HTTP server, with keep-alive"""


def number(kind: type, least: float, what: str, below: float = 1e9) -> Callable[[str], float]:
    """Return an argparse converter for values from `least` up to, not including, `below`.

    The error message is "VALUE is not WHAT".
    """

    def convert(text: str) -> float:
        try:
            value: float = kind(text)
        except ValueError:
            value = float('nan')
        if not least <= value < below:
            raise argparse.ArgumentTypeError(f'{text!r} is not {what}')
        return value

    return convert


def port(text: str) -> int:
    """Convert an argument to a port number."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f'{text!r} is not a port, 0 to 65535')
    return int(text)


def host(text: str) -> str:
    """Check that an argument can be a host name or an address."""
    if not text:
        raise argparse.ArgumentTypeError('the host is empty; give a host name or an address')
    return text


def path(text: str) -> str:
    """Check that an argument can be the path of an HTTP request."""
    if not re.fullmatch('/[!-~]*', text):
        raise argparse.ArgumentTypeError(f'{text!r} is not a path; it begins with / and has no spaces, only ASCII')
    return text


COUNT = number(int, 1, 'a whole number above 0')
SOURCES = number(int, 1, 'a whole number from 1 to 64,000', 64_001)  # for the addresses 127.0.0.1 to 127.0.255.250
SECONDS = number(float, 0, 'a number of seconds')
TIMEOUT = number(float, 1e-3, 'a number of seconds above 0')
RATE = number(float, 1e-3, 'a number above 0')


def make_parsers() -> dict[str, CommandLineParser]:
    """Return the parser of the whole command line under the name '', and the parser of each command under its name."""
    top = CommandLineParser(
        'python -m reactor.demo',
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument('--version', action='version', version=f'reactor {__version__}')
    top.add_argument('--connections', type=COUNT, default=40000, help='connections to open at once (default 40000)')
    top.add_argument('--rate', type=RATE, default=6000, help='connections to open per second (default 6000)')
    top.add_argument('--delay', type=SECONDS, default=10, help='seconds until each request is answered (default 10)')
    top.add_argument(
        '--hold', type=SECONDS, help='seconds to hold all connections before the answers (default 0; above 100,000: 10)'
    )
    top.add_argument('--yes', action='store_true', help='do not ask before more than 100,000 connections are opened')
    add_dashboard(top, '; it stays until Ctrl-C, also after the experiment')
    top.add_argument('--json', action='store_true', help=JSON_HELP.format('table'))
    top.add_argument('--quiet', action='store_true', help='print no progress lines')
    commands = top.add_subparsers(dest='command', title='commands', parser_class=CommandLineParser, metavar='COMMAND')
    serving = commands.add_parser('serve', help='only the server')
    loading = commands.add_parser('load', help='only the load')
    add_serve_options(serving)
    add_load_options(loading)
    return {'': top, 'serve': serving, 'load': loading}


def add_dashboard(to: CommandLineParser, stays: str = '') -> None:
    text = f'serve a live page on this machine (default port {DASHBOARD}, 0: a free one){stays}'
    to.add_argument('--dashboard', type=port, nargs='?', const=DASHBOARD, metavar='PORT', help=text)


def add_serve_options(serving: CommandLineParser) -> None:
    serving.add_argument('--host', type=host, default='127.0.0.1', help='address to listen on (default 127.0.0.1)')
    serving.add_argument('--port', type=port, default=9009, help='port to listen on; 0 picks a free one (default 9009)')
    serving.add_argument('--delay', type=SECONDS, default=5, help='seconds until each request is answered (default 5)')
    serving.add_argument(
        '--selector',
        choices=list(SELECTORS),
        default='default',
        help='selector to use (default: the best on this platform)',
    )
    serving.add_argument(
        '--reuse-port',
        action='store_true',
        help='set SO_REUSEPORT, so that other processes can listen on the port, too',
    )
    serving.add_argument(
        '--seconds', type=SECONDS, help='after this many seconds, stop listening, answer what was asked, and exit'
    )
    serving.add_argument('--no-stats', action='store_true', help='print no statistics')
    add_dashboard(serving)


def add_load_options(loading: CommandLineParser) -> None:
    loading.add_argument('--host', type=host, default='127.0.0.1', help='host to connect to (default 127.0.0.1)')
    loading.add_argument('--port', type=port, default=9009, help='port to connect to (default 9009)')
    loading.add_argument(
        '--connections',
        type=COUNT,
        help=f'connections in total (default {CONNECTIONS}; with --requests-per-second {STEADY_CONNECTIONS})',
    )
    loading.add_argument('--rate', type=RATE, help='connections to open per second (default 6000)')
    loading.add_argument('--calls', type=COUNT, help='requests on each connection (default 1)')
    loading.add_argument(
        '--timeout', type=TIMEOUT, default=30, help='seconds to wait for a connection or an answer (default 30)'
    )
    loading.add_argument(
        '--sources', type=SOURCES, help='number of addresses 127.0.x.y to connect from (default: as many as needed)'
    )
    loading.add_argument('--json', action='store_true', help=JSON_HELP.format('report'))
    steady = loading.add_argument_group(
        'requests at a fixed rate',
        'over keep-alive connections; every request is counted as answered or as an error, and waits while no '
        'connection is open',
    )
    steady.add_argument(
        '--requests-per-second', type=RATE, metavar='RATE', help='requests per second, over all connections together'
    )
    steady.add_argument('--seconds', type=RATE, help='how long to send requests (default 10)')
    steady.add_argument('--method', choices=['GET', 'POST'], help='HTTP method (default GET)')
    steady.add_argument('--path', type=path, help='path to request (default /)')


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line. If it is wrong, print one line and exit with status 2."""
    parsers = make_parsers()
    command = argv[0] if argv else ''
    if command not in parsers:
        command = ''
    check_names(argv, parsers, command)
    args = parsers[''].parse_args(argv)
    if args.command and not command:
        parsers[args.command].error(f'give the options after the command `{args.command}`')
    if command == 'load':
        complete(args, parsers['load'])
    return args


def check_names(argv: Sequence[str], parsers: Mapping[str, CommandLineParser], command: str) -> None:
    """Report an unknown option by its name. `argparse` would complain about its value first."""
    known = {name: re.findall(r'--[a-z-]+', one.format_usage()) for name, one in parsers.items()}
    known[command].append('--help')
    for word in argv:
        name = word.partition('=')[0]
        if not name.startswith('--') or any(option.startswith(name) for option in known[command]):
            continue
        owners = [f'`{owner}`' for owner in parsers if owner and name in known[owner]]
        near = difflib.get_close_matches(name, known[command], 1, 0.7)
        hint = f'; did you mean {near[0]}?' if near else ''
        hint = f'; it belongs after the command {" or ".join(owners)}' if owners and not command else hint
        parsers[command].error(f'unknown option {name}{hint}')


def complete(args: argparse.Namespace, loading: CommandLineParser) -> None:
    """Set the defaults of `load`. Refuse options that the chosen kind of load would ignore."""
    steady = args.requests_per_second is not None
    for name, default in {**OPENING, **STEADY}.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
        elif steady != (name in STEADY):
            loading.error(f'--{name} {"has no effect with" if steady else "needs"} --requests-per-second')
    if args.sources and not args.host.startswith('127.'):
        loading.error(f'--sources needs a host 127.x.y.z, not {args.host!r}')
    if args.connections is None:
        args.connections = STEADY_CONNECTIONS if steady else CONNECTIONS


def run_server(args: argparse.Namespace) -> int:
    """Run the command `serve` and return the exit status."""
    selector = SELECTORS[args.selector]
    if selector is None:
        print(f'reactor.demo: this platform has no {args.selector} selector; use --selector default', file=sys.stderr)
        return 2
    raise_descriptor_limit()
    with Reactor(selector=selector(), slow_callback=None if args.dashboard is None else SLOW) as r:
        r.run(lambda r: start_server(r, args))
    print('TCP server exited.', flush=True)
    return 0


def failed(exc: Exception, free_port: str) -> int:
    """Print the error in one line and return the exit status."""
    hint = f'; {free_port} picks a free one' if getattr(exc, 'errno', None) == errno.EADDRINUSE else ''
    print(f'reactor.demo: {getattr(exc, "strerror", None) or exc}{hint}', file=sys.stderr)
    return 1


def start_server(r: Reactor, args: argparse.Namespace) -> None:
    """Start the server, its statistics and the live page."""
    server = serve(r, args.host, args.port, delay=args.delay, reuse_port=args.reuse_port, seconds=args.seconds,
                   stats=not args.no_stats)  # fmt: skip
    if args.dashboard is not None:
        counters = source(r)
        page = LivePage(r, LOOPBACK, args.dashboard, lambda: {'0': {**counters()['0'], 'requests': server.finished}},
                        about='The server of reactor.demo.')  # fmt: skip
        print(f'live page at {page.url}', flush=True)


def run_load(args: argparse.Namespace) -> int:
    """Run the command `load` and return the exit status, 0 if there were no errors."""
    most = raise_descriptor_limit()
    with Reactor() as r:
        load: Load | SteadyLoad
        load = steady_load(r, args, most) if args.requests_per_second else opening_load(r, args, most)
        progress = Progress(quiet=args.json, in_pipe=False)
        progress.start(r, lambda: f'{bar(load.share)} {load.line()}')
        r.add_signal_handler(signal.SIGINT, load.stop).unref()
        r.run()
        progress.end()
    print(json.dumps(load.figures()) if args.json else load.report(), flush=True)
    if load.failed and not load.connected:
        print(f'reactor.demo: no connection to {args.host} port {args.port} could be opened; start a server there '
              f'(`python -m reactor.demo serve`), or give --host and --port', file=sys.stderr)  # fmt: skip
    if load.stopped:
        return INTERRUPTED
    return 1 if load.failed else 0


def opening_load(r: Reactor, args: argparse.Namespace, most: int) -> Load:
    """Return a load that opens connections at a fixed rate, at most `most` at once."""
    sources = source_addresses(args.connections)
    if args.sources:
        sources = [f'127.0.{n // 250}.{n % 250 + 1}' for n in range(args.sources)]
    return Load(r, args.host, args.port, connections=args.connections, rate=args.rate, calls=args.calls,
                timeout=args.timeout, sources=sources if args.host.startswith('127.') else [],
                most_open=most, on_done=r.stop)  # fmt: skip


def steady_load(r: Reactor, args: argparse.Namespace, most: int) -> SteadyLoad:
    """Return a load that sends requests at a fixed rate over at most `most` connections."""
    if args.connections > most:
        print(f'lowered from {args.connections:,} to {most:,} connections, because a process can open only {most:,} '
              f'here (see `ulimit -Hn`)', file=sys.stderr)  # fmt: skip
    return SteadyLoad(r, args.host, args.port, connections=min(args.connections, most), rate=args.requests_per_second,
                      seconds=args.seconds, timeout=args.timeout, method=args.method, path=args.path,
                      on_done=r.stop)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Run the chosen command, or the experiment, and return the exit status."""
    if args.command == 'serve':
        return run_server(args)
    if args.command == 'load':
        return run_load(args)
    return run_experiment(
        args.connections, args.rate, args.delay, args.hold, args.json, args.quiet, args.yes, args.dashboard
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    args = parse(sys.argv[1:] if argv is None else argv)
    try:
        return run(args)
    except KeyboardInterrupt:
        print('reactor.demo: interrupted', file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of the output has ended, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it at exit
        return 1
    except (OSError, ReactorError) as exc:
        return failed(exc, '--port 0 or --dashboard 0' if args.command == 'serve' else '--dashboard 0')


if __name__ == '__main__':
    sys.exit(main())
