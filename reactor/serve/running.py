"""`run`: which of the three roles this process has, and what it needs for it.

Owns the arguments, and how a program is started anew. Knows nothing of what workers do. The rule: a worker is never a
fork of a running loop. It is the same command again, with the options of the interpreter, told by one variable of its
environment who it is.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from socket import SOMAXCONN

from .. import Reactor, ReactorError
from .doors import Door
from .worker import work
from .workers import VARIABLE, Workers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended


def run(
    main: Callable[[Reactor, list[Any]], object],
    *,
    workers: int | None = None,
    listen: Iterable[Any] = (),
    deadline: float = 30.0,
    lame_duck: float = 1.0,
    start_timeout: float = 60.0,
    backlog: int = SOMAXCONN,
    on_start: Callable[[Reactor, Any], object] | None = None,
    **options: Any,
) -> int:
    """Serve with several processes on the same addresses; returns the exit status when all of them have ended.

    main           `main(r, listeners)` in each worker: a `Reactor(**options)`, and a listening socket for each of
                   `listen`, all of them to be used: `r.listen_tcp(None, 0, on_data, sock=listeners[0])`. The worker is
                   ready when it returns
    workers        how many; None: one for each processor that this process may use. 1 is a parent and a worker. 0 is
                   this process alone, as for a debugger: no parent, drained by the same signals
    listen         'host:port', '[IPv6]:port', ':port' for all addresses, 'unix:/path', 'unix:@abstract', (host, port),
                   or a socket that listens already. Port 0: a free one, the same for all
    deadline       seconds that a worker has to end what it does, then what is left is aborted
    lame_duck      seconds of it in which a worker that shall end still accepts
    start_timeout  seconds in which a worker must be ready, else it is killed
    on_start       `on_start(r, workers)` in the parent, once, when the workers are being started: see `Workers`

    The program is started anew for each worker, so it must be a file or a module (`-m`), and reach this call with the
    same arguments. In a worker this call does not return: it raises SystemExit when the worker is done.

    SIGTERM, SIGINT  all workers are drained (`Reactor.shutdown`); a second SIGINT ends them at once
    SIGHUP           the workers are replaced one by one, each when its successor is ready. A successor that fails ends
                     the round, and the others are kept
    SIGTTIN, SIGTTOU one worker more, one less

    On Linux each worker has a listening socket of its own on the port (SO_REUSEPORT), which the parent keeps for its
    successors: who waits in its queue is served by the next. Elsewhere, and on Unix sockets, all share one. What can
    still be lost: what was open on a worker that died, and what waits in the queue of one that died while it was
    drained. When a worker is removed by SIGTTOU, also who is in the middle of the handshake, or comes between its last
    accept and the close of its socket; not with `net.ipv4.tcp_migrate_req=1` (Linux 5.14), which gives them to others.

    A worker that dies is replaced at once, unless it lived less than a second: then after 0.1 s, doubled each time up
    to 10 s, for ever. Exit status: 0; 1 when a worker had to be killed at its deadline; 130 after a second SIGINT.
    Raises OSError (address in use), and ReactorError where it cannot be started anew.
    """
    if not callable(main) or not (on_start is None or callable(on_start)):
        raise TypeError('main and on_start are called: they must be callable')
    if workers is not None and (type(workers) is not int or workers < 0):
        raise ValueError(f'workers is None or a number of processes, 0 or more, not {workers!r}')
    if not 0 <= lame_duck <= deadline < float('inf'):
        raise ValueError(f'lame_duck is a part of deadline, in seconds: not {lame_duck!r} of {deadline!r}')
    told = os.environ.pop(VARIABLE, None)
    if told is not None:
        work(json.loads(told), main, deadline, lame_duck, options)
        raise SystemExit(0)
    doors = [Door(address, backlog, balanced=workers != 0) for address in listen]
    try:
        if workers == 0:
            return _run_alone(main, doors, deadline, lame_duck, on_start, options)
        with Reactor() as r:
            team = Workers(r, command(), doors, deadline, start_timeout)
            r.run(lambda r: team.begin(processors() if workers is None else workers, on_start))
            return team.status
    finally:
        for door in doors:
            door.remove()


def command() -> list[str]:
    """What starts this program anew; ReactorError when nothing does."""
    file = getattr(sys.modules['__main__'], '__file__', None)
    if os.name != 'posix':
        raise ReactorError('workers need descriptors handed on, which this platform cannot; use workers=0')
    if not file or file == '<stdin>' or not sys.executable:
        raise ReactorError(
            'a worker is this program started anew, and what came by -c, standard input or the prompt cannot be: '
            'put it into a file and run that, or use workers=0 to run in this process'
        )
    return [sys.executable, *sys.orig_argv[1:]]


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


class _Alone:
    """What stands for `Workers` when there are none."""

    def __init__(self, r: Reactor) -> None:
        self._r = r

    def stats(self) -> dict[str, dict[str, Any]]:
        return {'0': self._r.stats().as_dict() | {'pid': os.getpid()}}

    def pids(self) -> dict[str, int]:
        return {'0': os.getpid()}


def _run_alone(
    main: Any, doors: list[Door], deadline: float, lame_duck: float, on_start: Any, options: dict[str, Any]
) -> int:
    with Reactor(**options) as r:

        def begin(r: Reactor) -> None:
            r.add_signal_handler(signal.SIGTERM, r.shutdown, deadline, lame_duck).unref()
            r.add_signal_handler(signal.SIGINT, interrupt).unref()
            main(r, [door.open() for door in doors])
            if on_start is not None:
                on_start(r, _Alone(r))

        def interrupt() -> None:
            r.remove_signal_handler(signal.SIGINT)  # the next one is a KeyboardInterrupt
            r.shutdown(deadline, lame_duck)

        try:
            r.run(begin)
        except KeyboardInterrupt:
            return INTERRUPTED
    return 0
