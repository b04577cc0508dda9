"""`run`, which makes this process the parent of workers or, if the parent has started it, a worker."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from socket import SOMAXCONN
from typing import Any, Literal, Unpack

from .. import Reactor, __version__
from ..callbacks import ReactorOptions
from ..loop.checks import shown, time_limit, whole
from ..net.drain import check_times
from ..net.options import check_names
from ..net.sockets import check_backlog
from . import systemd
from .addresses import ListenAddress
from .first_process import end_on_sigterm, open_standard_descriptors
from .logs import FORMATTERS, log_to_standard_error
from .messages import Terms
from .program import command
from .terminal import ParentSelector, job_control_blocked
from .worker import WorkerListeners, work
from .worker_process import VARIABLE
from .workers import Workers

end_on_sigterm()  # here, because the rest of the program may take long to import

SHORTEST_HANG = 2.0  # seconds: the smallest `hang_timeout`; a worker reports twice in this time


def run(
    main: Callable[[Reactor, WorkerListeners], object],
    *,
    workers: int | None = None,
    listen: Iterable[Any] = (),
    drain_timeout: float = 30.0,
    lame_duck: float = 1.0,
    start_timeout: float = 60.0,
    hang_timeout: float | None = 30.0,
    backlog: int = SOMAXCONN,
    log: Literal['text', 'json'] | None = None,
    on_start: Callable[[Reactor, Workers], object] | None = None,
    **options: Unpack[ReactorOptions],
) -> int:
    """Serve with several worker processes on the same addresses, until all of them have ended.

    The program is started again for each worker, in the directory where it imported this module. So it has to be a file
    or a module (`-m`), and has to reach this call again. In a worker, the call does not return; it raises SystemExit
    when the worker has finished.

    A release can be deployed by switching a symbolic link and sending SIGHUP, if the program was started through the
    link: with an absolute path, or in the link's directory with the environment variable PWD naming the link, as shells
    do. The old release can then be removed.

    A worker that dies is replaced at once. If it has served for less than a second, it is replaced after 0.1 s instead;
    this pause doubles with each further failure, up to 10 s. The parent never stops trying. A worker that drains by
    itself (`r.drain`, or SIGTERM sent to it alone) is replaced while it drains. If the parent dies, the workers drain
    and exit; a worker whose loop is blocked then ends two seconds after its drain timeout. (A thread in each worker
    waits for that.)

    The logger `reactor` reports at INFO that a worker is ready, drains or has drained, and at WARNING what is wrong.

    To take part in the drain of a worker, call `r.add_drain_callback` in `main`. The parent does not drain workers by a
    signal, so a SIGTERM handler of your own changes only what SIGTERM to the worker alone does; a warning is logged.

    Signals to the parent:

    - SIGTERM, SIGINT: all workers drain (`Reactor.drain`) and exit. A second SIGINT kills them. `r.stop` and `r.drain`
      in the parent have the same effect as SIGTERM.
    - SIGHUP: the workers are replaced one after another. Each drains when its successor is ready. If a successor
      fails to start, the workers that have not been replaced yet are kept. A worker that still drains since an earlier
      SIGHUP has 5 s left when the reload comes to its slot.
    - SIGTTIN adds a worker, SIGTTOU removes one.
    - SIGQUIT kills the workers and ends the parent at once. Sent to a worker, it writes the stacks of its threads to
      standard error, and the worker continues.
    - SIGUSR1 and SIGUSR2 are ignored, with a warning. Handlers that the program has installed for these signals or for
      SIGQUIT, before this call or in `on_start` or `main`, are used instead.

    As process 1 of a container, the parent reaps orphans, and SIGTERM ends the program from the import of this module
    on. If `on_start` starts a child with `subprocess`, wait for it within 5 s of its end, or use `r.spawn`.

    After SIGHUP, the times and the reactor options of the new program apply. A warning is logged if only a restart can
    apply a change: of `workers`, `listen`, `backlog`, or the version of Python or of this package.

    On Linux each worker has its own listening socket on the port (SO_REUSEPORT). The parent keeps the socket open when
    its worker exits, so the next worker serves the connections in its queue. On other systems, and for Unix sockets,
    all workers share one socket. While a worker fails to start and another one serves, the socket of the failing worker
    is closed, so that clients reach the other workers; connections in its queue are reset.

    While a program serves an address, a second start of it on the same address raises OSError, even if both are started
    at the same moment. Another process of the same user can still join the port by setting SO_REUSEPORT on its socket.

    systemd is notified when all workers are ready, when they are replaced, and at shutdown. The parent's loop sends the
    keep-alive messages to its watchdog.

    Clients can still lose connections in these cases:

    - A worker dies: its open connections are lost.
    - A worker dies while it drains, and no other process uses its socket: connections in the socket's queue are lost.
    - A socket is closed (by SIGTTOU, for example) while a client is in the middle of the TCP handshake. With
      `net.ipv4.tcp_migrate_req=1` (Linux 5.14), the kernel moves that client to another worker. A SYN that was dropped
      just before is retransmitted after one second; it then reaches another worker or is refused.

    Args:
        main: Called as `main(r, listeners)` in each worker, with a `Reactor(**options)` and a listening socket for each
            element of `listen`. Use all of the sockets: `r.listen_tcp(None, 0, on_data, sock=listeners[0])`.
            `listeners.slot` is the number of the worker's slot, from 0. The worker is considered ready when `main`
            returns.
        workers: Number of workers, at least 1. None: one for each processor that this process may use. For a single
            process without a parent, use `reactor.run` and `r.add_signal_handler(SIGTERM, r.drain, 30, 1)`.
        listen: Addresses: 'host:port', '[IPv6]:port', ':port' for all addresses, 'unix:/path', 'unix:@abstract',
            (host, port), or a listening socket. Port 0 picks a free port, the same for all workers. A client needs
            write permission for the file of a Unix socket. The umask often denies it to other users, such as that of a
            proxy; 'unix:/path?mode=0660' sets the permission bits (three octal digits) before the socket listens. If
            systemd has passed sockets (`systemd.inherited_sockets`), they are used instead.
        drain_timeout: Seconds that a worker has to finish its work; remaining connections are then reset.
        lame_duck: Seconds at the start of the drain in which the worker still accepts connections.
        start_timeout: Seconds that a worker has to become ready; otherwise it is killed.
        hang_timeout: Seconds without a report after which a worker is considered hung, at least 2. A worker reports
            once a second from its loop, so it stops reporting when a callback blocks or SIGSTOP stops it. A warning is
            logged, and the worker writes the stacks of its threads to standard error. Two seconds later (or half of
            `hang_timeout`, if that is less) the worker is killed and replaced. Raise the value if your callbacks can
            block that long; None switches the check off.
        backlog: Length of the queue of each listening socket.
        log: 'text' or 'json': in the parent and in each worker, the root logger gets the level INFO and a handler that
            writes lines to standard error, see `TextFormatter` and `JSONFormatter`. If standard error is a full disk
            or a closed pipe, or if its reader stops reading, lines are dropped instead of blocking the loop. None
            leaves logging to the program.
        on_start: Called once as `on_start(r, workers)` in the parent, after the first workers have been started; see
            `Workers`.
        **options: Options of the `Reactor` in each worker. Like these, limits count for each worker separately: with
            four workers, `Limits(connections=5)` allows 20 connections.

    Returns:
        An exit status: normally 0; 1 if a worker had to be killed during the shutdown because it had not exited two
        seconds after its drain timeout; 130 after a second SIGINT; 131 after SIGQUIT.

    Raises:
        OSError: An address is in use, or permission is denied.
        ReactorError: The program cannot be started again, or this is not the main thread.
        SystemExit: In a worker, when it has finished.
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range or not valid.
    """
    check_names(run, options, ReactorOptions)
    if not callable(main) or not (on_start is None or callable(on_start)):
        raise TypeError(f'main and on_start must be callable, not {shown(main)} and {shown(on_start)}')
    if workers is not None:
        whole('workers', workers, 1, unit='number of processes, or None')
    if isinstance(listen, str) or not hasattr(listen, '__iter__'):
        raise TypeError(f'listen must be a list of addresses, not {shown(listen)}')
    drain_timeout, lame_duck = check_times(drain_timeout, lame_duck, 'drain_timeout')
    start_timeout = time_limit('start_timeout', start_timeout)
    if hang_timeout is not None and time_limit('hang_timeout', hang_timeout, '; None switches it off') < SHORTEST_HANG:
        raise ValueError(
            f'hang_timeout must be at least {SHORTEST_HANG:g} s, not {hang_timeout!r}: workers report once a second'
        )
    check_backlog(backlog)
    if log not in (None, *FORMATTERS):
        raise ValueError(f"log must be 'text', 'json' or None, not {shown(log)}")
    listen = list(listen)
    terms: Terms = {
        'drain_timeout': drain_timeout,
        'start_timeout': start_timeout,
        'hang_timeout': hang_timeout,
        'fixed': fixed_terms(workers, listen, backlog),
    }
    settings = os.environ.pop(VARIABLE, None)
    if settings is not None:
        parsed = {**json.loads(settings), 'backlog': backlog}
        if log is not None:
            log_to_standard_error(log, parsed['slot'])
        work(parsed, main, (drain_timeout, lame_duck), options, terms)
        raise SystemExit(0)
    open_standard_descriptors()
    Reactor(**options).close()  # raise for invalid options here, because with them every worker would fail to start
    argv, listen_addresses = command(), list[ListenAddress]()
    if log is not None:
        log_to_standard_error(log, 'parent')
    try:
        for address in [sock for _, sock in systemd.inherited_sockets()] or listen:
            listen_addresses.append(ListenAddress(address, backlog))
        with job_control_blocked(), Reactor(ParentSelector()) as r:
            team = Workers(r, argv, listen_addresses, drain_timeout, start_timeout, hang_timeout)
            team.fixed = terms['fixed']
            r.run(lambda r: team.begin(workers or processors(), on_start))
            # If workers are left, `r.stop` or `r.drain` was called in the parent, for example through a control socket.
            # Closing this reactor would kill the workers, so let them drain first.
            while team.slots or team.leaving:
                team.drain()
                r.run()
            return team.status
    finally:
        for address in listen_addresses:
            address.remove()


def fixed_terms(workers: int | None, listen: list[Any], backlog: int) -> dict[str, str]:
    """Return what only a restart can change: maps the text before each value in messages to the value."""
    addresses = ', '.join('a socket' if hasattr(address, 'fileno') else shown(address) for address in listen)
    return {
        'workers=': str(workers),
        'listen=': f'[{addresses}]',
        'backlog=': str(backlog),
        'Python ': '.'.join(map(str, sys.version_info[:3])),
        'reactor ': __version__,
    }


def processors() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
