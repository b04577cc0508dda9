"""The command line of the experiment: `python -m reactor.demo [serve | load]`."""

from __future__ import annotations

import argparse
import errno
import json
import selectors
import signal
import sys
from collections.abc import Callable, Sequence
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


COUNT = number(int, 1, 'a whole number above 0')
SOURCES = number(int, 1, 'a whole number from 1 to 64,000', 64_001)  # for the addresses 127.0.0.1 to 127.0.255.250
SECONDS = number(float, 0, 'a number of seconds')
TIMEOUT = number(float, 1e-3, 'a number of seconds above 0')
RATE = number(float, 1e-3, 'a number above 0')


def parser() -> argparse.ArgumentParser:
    """Return the parser for all commands and options."""
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
    dashboard = {'type': port, 'nargs': '?', 'const': DASHBOARD, 'metavar': 'PORT',
                 'help': f'serve a live page on this machine (default port {DASHBOARD}, 0: a free one)'}  # fmt: skip
    top.add_argument('--dashboard', **dashboard)  # type: ignore[arg-type]
    top.add_argument('--json', action='store_true', help='print one JSON object instead of the table')
    top.add_argument('--quiet', action='store_true', help='print no progress lines')
    commands = top.add_subparsers(dest='command', title='commands', parser_class=CommandLineParser, metavar='')

    serving = commands.add_parser('serve', help='only the server')
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
    serving.add_argument('--seconds', type=SECONDS, help='exit after this many seconds')
    serving.add_argument('--no-stats', action='store_true', help='print no statistics')

    serving.add_argument('--dashboard', **dashboard)  # type: ignore[arg-type]

    loading = commands.add_parser('load', help='only the load')
    loading.add_argument('--host', type=host, default='127.0.0.1', help='host to connect to (default 127.0.0.1)')
    loading.add_argument('--port', type=port, default=9009, help='port to connect to (default 9009)')
    loading.add_argument('--connections', type=COUNT, default=40000, help='connections in total (default 40000)')
    loading.add_argument('--rate', type=RATE, default=6000, help='connections to open per second (default 6000)')
    loading.add_argument('--calls', type=COUNT, default=1, help='requests on each connection (default 1)')
    loading.add_argument(
        '--timeout', type=TIMEOUT, default=30, help='seconds to wait for a connection or an answer (default 30)'
    )
    loading.add_argument(
        '--sources', type=SOURCES, help='number of addresses 127.0.x.y to connect from (default: as many as needed)'
    )
    loading.add_argument('--json', action='store_true', help='print one JSON object instead of the report')
    steady = loading.add_argument_group(
        'requests at a fixed rate', 'over keep-alive connections; every request is counted as answered or as an error'
    )
    steady.add_argument(
        '--requests-per-second', type=RATE, metavar='RATE', help='requests per second, over all connections together'
    )
    steady.add_argument('--seconds', type=RATE, default=10, help='how long to send requests (default 10)')
    steady.add_argument('--method', choices=['GET', 'POST'], default='GET', help='HTTP method (default GET)')
    steady.add_argument('--path', default='/', help='path to request (default /)')
    return top


def run_server(args: argparse.Namespace) -> int:
    """Run the command `serve` and return the exit status."""
    selector = SELECTORS[args.selector]
    if selector is None:
        print(f'reactor.demo: this platform has no {args.selector} selector; use --selector default', file=sys.stderr)
        return 2
    raise_descriptor_limit()
    try:
        with Reactor(selector=selector(), slow_callback=None if args.dashboard is None else SLOW) as r:
            r.run(lambda r: start_server(r, args))
    except KeyboardInterrupt:
        return INTERRUPTED
    except (OSError, ReactorError) as exc:
        return failed(exc, '--port 0 or --dashboard 0')
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
        load = steady_load(r, args) if args.requests_per_second else opening_load(r, args, most)
        progress = Progress(quiet=args.json, in_pipe=False)
        progress.start(r, lambda: f'{bar(load.share)} {load.line()}')
        r.add_signal_handler(signal.SIGINT, load.stop).unref()
        r.run()
        progress.end()
    print(json.dumps(load.figures()) if args.json else load.report())
    if load.share < 1:
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


def steady_load(r: Reactor, args: argparse.Namespace) -> SteadyLoad:
    """Return a load that sends requests at a fixed rate."""
    return SteadyLoad(r, args.host, args.port, connections=args.connections, rate=args.requests_per_second,
                      seconds=args.seconds, timeout=args.timeout, method=args.method, path=args.path,
                      on_done=r.stop)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    args = parser().parse_args(argv)
    if args.command == 'serve':
        return run_server(args)
    if args.command == 'load':
        return run_load(args)
    try:
        return run_experiment(args.connections, args.rate, args.delay, args.json, args.quiet, args.dashboard)
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as exc:
        return failed(exc, '--dashboard 0')


if __name__ == '__main__':
    sys.exit(main())
