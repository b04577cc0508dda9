"""The command line of the experiment: `python -m reactor.demo [serve | load]`."""

from __future__ import annotations

import argparse
import errno
import json
import selectors
import signal
import sys

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

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

SELECTORS: dict[str, Any] = {
    'default': selectors.DefaultSelector,
    'poll': getattr(selectors, 'PollSelector', None),
    'select': selectors.SelectSelector,
}
DASHBOARD, LOOPBACK = 9010, '127.0.0.1'
SLOW = 0.1  # seconds: a callback that takes as long is named on the live page
INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended

DESCRIPTION = """\
Without a command: the whole experiment. Opens so many connections to servers of its own, all at once; each asks,
waits for the delay on a timer, and is answered by a write-callback that closes it. Prints one table."""
EXAMPLES = """\
examples:
  python -m reactor.demo                            40,000 connections, at 6,000 a second
  python -m reactor.demo --connections 1000 --delay 1 --json
  python -m reactor.demo --dashboard                the same, and a page to watch it on
  python -m reactor.demo serve --port 9009          the server alone, statistics once a second
  python -m reactor.demo load --connections 5000    the load alone, against it
  python -m reactor.demo load --port 8080 --connections 100 --requests-per-second 2000 --seconds 10
                                                    any HTTP server: requests at a fixed rate, keep-alive"""


def number(kind: type, least: float, what: str, below: float = 1e9) -> Callable[[str], float]:
    """A converter for argparse that says what it wants."""

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
    """A port for argparse."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f'{text!r} is not a port, 0 to 65535')
    return int(text)


def host(text: str) -> str:
    """A name or an address for argparse."""
    if not text:
        raise argparse.ArgumentTypeError('it is the name or the address of a host, not empty')
    return text


COUNT = number(int, 1, 'a whole number above 0')
SOURCES = number(int, 1, 'a whole number from 1 to 64,000', 64_001)  # what 127.0.x.y has, without the ends
SECONDS = number(float, 0, 'a number of seconds')
TIMEOUT = number(float, 1e-3, 'a number of seconds above 0')
RATE = number(float, 1e-3, 'a number above 0')


def parser() -> argparse.ArgumentParser:
    """All commands and options."""
    top = CommandLineParser(
        'python -m reactor.demo',
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument('--version', action='version', version=f'reactor {__version__}')
    top.add_argument('--connections', type=COUNT, default=40000, help='open at once (default 40000)')
    top.add_argument('--rate', type=RATE, default=6000, help='opened each second (default 6000)')
    top.add_argument('--delay', type=SECONDS, default=10, help='seconds that each answer waits (default 10)')
    dashboard = {'type': port, 'nargs': '?', 'const': DASHBOARD, 'metavar': 'PORT',
                 'help': f'serve a live page on this machine (default port {DASHBOARD}, 0 for a free one)'}  # fmt: skip
    top.add_argument('--dashboard', **dashboard)  # type: ignore[arg-type]
    top.add_argument('--json', action='store_true', help='print one JSON object instead of the table')
    top.add_argument('--quiet', action='store_true', help='no progress lines')
    commands = top.add_subparsers(dest='command', title='commands', parser_class=CommandLineParser, metavar='')

    serving = commands.add_parser('serve', help='the server alone')
    serving.add_argument('--host', type=host, default='127.0.0.1', help='address to listen on (default 127.0.0.1)')
    serving.add_argument('--port', type=port, default=9009, help='port to listen on, 0 for a free one (default 9009)')
    serving.add_argument('--delay', type=SECONDS, default=5, help='seconds that each answer waits (default 5)')
    serving.add_argument('--selector', choices=list(SELECTORS), default='default', help='what to wait with')
    serving.add_argument('--reuse-port', action='store_true', help='let other processes listen on the port too')
    serving.add_argument('--seconds', type=SECONDS, help='end after so many seconds')
    serving.add_argument('--no-stats', action='store_true', help='do not print statistics once a second')

    serving.add_argument('--dashboard', **dashboard)  # type: ignore[arg-type]

    loading = commands.add_parser('load', help='the load alone')
    loading.add_argument('--host', type=host, default='127.0.0.1', help='server to connect to (default 127.0.0.1)')
    loading.add_argument('--port', type=port, default=9009, help='its port (default 9009)')
    loading.add_argument('--connections', type=COUNT, default=40000, help='in all (default 40000)')
    loading.add_argument('--rate', type=RATE, default=6000, help='opened each second (default 6000)')
    loading.add_argument('--calls', type=COUNT, default=1, help='requests on each connection (default 1)')
    loading.add_argument('--timeout', type=TIMEOUT, default=30, help='seconds until one is given up (default 30)')
    loading.add_argument('--sources', type=SOURCES, help='addresses 127.0.0.x to connect from (default: as needed)')
    loading.add_argument('--json', action='store_true', help='print one JSON object instead of the report')
    steady = loading.add_argument_group(
        'requests at a fixed rate', 'over connections that stay; every request is answered, or an error'
    )
    steady.add_argument('--requests-per-second', type=RATE, metavar='RATE', help='over all the connections together')
    steady.add_argument('--seconds', type=RATE, default=10, help='for how long (default 10)')
    steady.add_argument('--method', choices=['GET', 'POST'], default='GET', help='what is asked (default GET)')
    steady.add_argument('--path', default='/', help='for what (default /)')
    return top


def run_server(args: argparse.Namespace) -> int:
    """`serve`: returns the exit status."""
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
    """Say it in one line; returns the exit status."""
    hint = f'; {free_port} picks a free one' if getattr(exc, 'errno', None) == errno.EADDRINUSE else ''
    print(f'reactor.demo: {getattr(exc, "strerror", None) or exc}{hint}', file=sys.stderr)
    return 1


def start_server(r: Reactor, args: argparse.Namespace) -> None:
    """Everything that `serve` starts."""
    server = serve(r, args.host, args.port, delay=args.delay, reuse_port=args.reuse_port, seconds=args.seconds,
                   stats=not args.no_stats)  # fmt: skip
    if args.dashboard is not None:
        told = source(r)
        page = LivePage(r, LOOPBACK, args.dashboard, lambda: {'0': {**told()['0'], 'requests': server.finished}},
                        about='The server of reactor.demo.')  # fmt: skip
        print(f'live page at {page.url}', flush=True)


def run_load(args: argparse.Namespace) -> int:
    """`load`: returns the exit status, 0 when there was no error."""
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
    """Connections at a fixed rate, at most so many of them at once."""
    sources = source_addresses(args.connections)
    if args.sources:
        sources = [f'127.0.{n // 250}.{n % 250 + 1}' for n in range(args.sources)]
    return Load(r, args.host, args.port, connections=args.connections, rate=args.rate, calls=args.calls,
                timeout=args.timeout, sources=sources if args.host.startswith('127.') else [],
                most_open=most, on_done=r.stop)  # fmt: skip


def steady_load(r: Reactor, args: argparse.Namespace) -> SteadyLoad:
    """Requests at a fixed rate."""
    return SteadyLoad(r, args.host, args.port, connections=args.connections, rate=args.requests_per_second,
                      seconds=args.seconds, timeout=args.timeout, method=args.method, path=args.path,
                      on_done=r.stop)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
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
