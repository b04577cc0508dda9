"""`run`: whether this process is the parent or a worker, and what starts a worker.

Owns the arguments. Knows nothing of what workers do. The rule: a worker is never a fork of a running loop. It is the
same command again, with the same options of the interpreter, and one variable of its environment tells it who it is.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from socket import SOMAXCONN
from typing import Any, Unpack

from .. import Reactor, ReactorError
from ..callbacks import ReactorOptions
from ..loop.checks import shown, time_limit, whole
from ..net.drain import check_times
from ..net.options import check_names
from ..net.sockets import check_backlog
from . import systemd
from .addresses import ListenAddress
from .worker import work
from .workers import VARIABLE, Workers

SHORTEST_HANG = 2.0  # seconds: two reports of a worker


def run(
    main: Callable[[Reactor, list[Any]], object],
    *,
    workers: int | None = None,
    listen: Iterable[Any] = (),
    drain_timeout: float = 30.0,
    lame_duck: float = 1.0,
    start_timeout: float = 60.0,
    hang_timeout: float | None = 30.0,
    backlog: int = SOMAXCONN,
    on_start: Callable[[Reactor, Workers], object] | None = None,
    **options: Unpack[ReactorOptions],
) -> int:
    """Serve with several processes on the same addresses; returns an exit status when all of them have ended.

    main           `main(r, listeners)` in each worker: a `Reactor(**options)`, and a listening socket for each of
                   `listen`, all of them to be used: `r.listen_tcp(None, 0, on_data, sock=listeners[0])`. The worker is
                   ready when it returns
    workers        how many, at least 1; None: one for each processor that this process may use. One process without a
                   parent is `reactor.run`, and `r.add_signal_handler(SIGTERM, r.drain, 30, 1)` in it
    listen         'host:port', '[IPv6]:port', ':port' for all addresses, 'unix:/path', 'unix:@abstract', (host, port),
                   or a socket that listens already. Port 0: a free one, the same for all. In place of these, when
                   there are any: the sockets that systemd has passed (`systemd.inherited_sockets`)
    drain_timeout  seconds that a worker has to end what it does; what is left then is aborted
    lame_duck      seconds of it in which a worker that is to end still accepts
    start_timeout  seconds in which a worker has to be ready, else it is killed
    hang_timeout   seconds in which a worker that serves has to report, which it does once a second from its loop. One
                   that does not, because a callback blocks, is logged, killed two seconds later and replaced. Raise it
                   when a callback of yours may take as long, or give None to switch it off. At least 2
    on_start       `on_start(r, workers)` in the parent, once, when the first workers start; see `Workers`

    The program is started anew for each worker, in the directory in which it has imported this: so it is a file or a
    module (`-m`), and comes to this call again. There the call does not return, but raises SystemExit when the worker
    is done.

    SIGTERM, SIGINT   all workers drain (`Reactor.drain`) and go; a second SIGINT ends them at once
    SIGHUP            the workers are replaced one by one: each drains when its successor is ready. When that fails, the
                      rest of them is kept
    SIGTTIN, SIGTTOU  one worker more; one less

    A worker that dies is replaced at once, and one that served less than a second after 0.1 s, doubled each time up to
    10 s, for ever. One that drains of its own accord (`r.drain`, or a SIGTERM to it alone) is replaced meanwhile.
    On Linux each has a listening socket of its own on the port (SO_REUSEPORT), which the parent keeps: who waits in its
    queue is served by the next one. Elsewhere, and at Unix sockets, all share one. While a worker fails to start and
    another one serves, the socket of the failing one is closed, so that clients reach those who live: what waits in its
    queue then is reset.

    `r.stop` and `r.drain` in the parent drain the workers as SIGTERM does.

    systemd is told when all workers are ready, and of replacing and ending; its watchdog hears from the parent's loop.

    What can still be lost: what was open on a worker that died. What waits in the queue of one that dies while it
    drains as the last on its socket, and who is in the middle of the handshake when that is closed (by SIGTTOU too; not
    with `net.ipv4.tcp_migrate_req=1` of Linux 5.14, which gives him to another). Who comes right before that knocks
    again after a second, and gets to another worker, or is refused.

    The status: 0; 1 when a worker had to be killed, two seconds after its drain timeout; 130 after a second SIGINT.

    Raises OSError (address in use), and ReactorError when the program cannot be started again or this is not the main
    thread.
    """
    check_names(run, options, ReactorOptions)
    if not callable(main) or not (on_start is None or callable(on_start)):
        raise TypeError(f'main and on_start must be callable, not {shown(main)} and {shown(on_start)}')
    if workers is not None:
        whole('workers', workers, 1, unit='number of processes, or None')
    if isinstance(listen, str) or not hasattr(listen, '__iter__'):
        raise TypeError(f'listen is a list of addresses, not {shown(listen)}')
    drain_timeout, lame_duck = check_times(drain_timeout, lame_duck, 'drain_timeout')
    start_timeout = time_limit('start_timeout', start_timeout)
    if hang_timeout is not None and time_limit('hang_timeout', hang_timeout, '; None switches it off') < SHORTEST_HANG:
        raise ValueError(
            f'hang_timeout is at least {SHORTEST_HANG:g} s, not {hang_timeout!r}: workers report once a second'
        )
    check_backlog(backlog)
    told = os.environ.pop(VARIABLE, None)
    if told is not None:
        work(json.loads(told), main, (drain_timeout, lame_duck), options)
        raise SystemExit(0)
    Reactor(**options).close()  # bad ones are told here, and not by workers that fail for ever
    argv, listen_addresses = command(), list[ListenAddress]()
    try:
        for address in [sock for _, sock in systemd.inherited_sockets()] or listen:
            listen_addresses.append(ListenAddress(address, backlog))
        with Reactor() as r:
            team = Workers(r, argv, listen_addresses, drain_timeout, start_timeout, hang_timeout)
            r.run(lambda r: team.begin(workers or processors(), on_start))
            # Something stopped this reactor or shut it down, such as a control socket, perhaps while the workers were
            # draining already. Closing it would kill them.
            while team.slots or team.leaving:
                team.drain()
                r.run()
            return team.status
    finally:
        for address in listen_addresses:
            address.remove()


def command() -> list[str]:
    """What starts this program anew; ReactorError when nothing does."""
    if os.name != 'posix':
        raise ReactorError(
            'workers get descriptors handed on, which this platform cannot: use one process, reactor.run'
        )
    file = getattr(sys.modules['__main__'], '__file__', None)
    if not file or file == '<stdin>' or not sys.executable:
        raise ReactorError(
            'a worker is this program started anew, and what came by -c, standard input or the prompt cannot be: '
            'put it into a file and run that'
        )
    return [sys.executable, *sys.orig_argv[1:]]


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
