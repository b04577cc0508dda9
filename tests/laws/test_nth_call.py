"""Fail the n-th call, as SQLite's tests do: each call to the kernel fails once with each of its possible errors.

The programs are random programs with small seeds, and the programs of `nth_scenarios`. A first run without faults lists
the calls of a program. Then, for each n, only the n-th call fails, with each errno that `ERRORS` has for that call, on
each kind of selector. In every run no law may be broken, nothing may be stuck, every descriptor is closed, and every
connection ends once.

EINTR is not among the errors, because Python repeats the call itself (PEP 475). For EBADF, the descriptor is really
closed right before the call, as other code might do. The handle of the descriptor must end with that error as soon as
the reactor can notice, and no other handle may end. In calls where the reactor cannot notice (options, addresses, and
registrations with poll and select), the descriptor number is not used again. The clock never fails, and neither does
`unregister`, whose errors `selectors` hides.

A sample always runs. `pytest --nth-whole tests/laws/test_nth_call.py` runs all cases in two processes and lists the
failures.
"""

from __future__ import annotations

import errno
import faulthandler
import logging
import multiprocessing
import random
import socket
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from typing import Any

import pytest

from reactor import Reactor
from reactor.testing import SimKernel
from reactor.testing.mailboxes import Mailbox
from reactor.testing.programs import ALONE, PROGRAMS
from reactor.testing.simulation import Simulation, SimulationFailed
from tests.helpers.certificates import certificates  # noqa: F401
from tests.helpers.nth_scenarios import SCENARIOS

pytestmark = pytest.mark.slow

KINDS = ('epoll', 'poll', 'select')
PLAYS: dict[str, Any] = {program.__name__: program for program in (*PROGRAMS, *ALONE, *SCENARIOS)}
SECURED = {'tls_echo', 'tls_ends', 'tls_files', 'upgrade'}
SEEDS, AMONG, LONGEST = (
    3,
    12,
    250,
)  # of AMONG seeds, each random program runs with the first SEEDS that lead to fewer than LONGEST calls
SAMPLE, PARTS = 2000, 8  # the number of runs, and the number of tests among which they are divided

EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
UNREACHED = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN)
SENDING = (
    errno.EAGAIN, errno.EPIPE, errno.ECONNRESET, errno.ETIMEDOUT, errno.ENOTCONN, *UNREACHED, errno.EACCES,
    errno.ENOBUFS, errno.ENOMEM, errno.EIO, errno.EBADF,
)  # fmt: skip
POSTING = (
    errno.EAGAIN, errno.ECONNREFUSED, *UNREACHED, errno.EPERM, errno.EACCES, errno.EINVAL, errno.EMSGSIZE,
    errno.ENOBUFS, errno.ENOMEM, errno.EBADF,
)  # fmt: skip
FETCHING = (errno.EAGAIN, errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENOBUFS, errno.ENOMEM, errno.EBADF)
RESOLVING = (socket.EAI_AGAIN, socket.EAI_FAIL, socket.EAI_MEMORY, socket.EAI_NONAME, socket.EAI_SYSTEM)
WATCHING = (errno.ENOMEM, errno.ENOSPC, errno.EBADF)  # EPERM is reported only for files
PATHS = (errno.EACCES, errno.ELOOP, errno.ENOENT, errno.ENOTDIR, errno.EROFS, errno.ENAMETOOLONG)

# The errors in the manual page of each call, except errors for wrong arguments, such as EFAULT.
ERRORS: dict[str, tuple[int, ...]] = {
    'selector': (errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    'select': (errno.ENOMEM, errno.EINVAL, errno.EBADF),
    'poll': (errno.ENOMEM,),
    'register': WATCHING,
    'modify': WATCHING,
    'socketpair': EXHAUSTED,
    'socket': (*EXHAUSTED, errno.EACCES, errno.EAFNOSUPPORT),
    'bind': (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES, errno.EINVAL, errno.ENOMEM, *PATHS, errno.EBADF),
    'listen': (errno.EADDRINUSE, errno.EOPNOTSUPP, errno.EBADF),
    'accept': (
        errno.EAGAIN, *EXHAUSTED, errno.ECONNABORTED, errno.EPROTO, errno.EPERM, *UNREACHED, errno.EINVAL, errno.EBADF,
    ),
    'connect': (
        errno.ECONNREFUSED, errno.ETIMEDOUT, *UNREACHED, errno.EADDRNOTAVAIL, errno.EADDRINUSE, errno.EAGAIN,
        errno.EACCES, errno.EPERM, errno.ENOENT, errno.EBADF,
    ),
    'recv': (
        errno.EAGAIN, errno.ECONNRESET, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENOTCONN, errno.ENOBUFS,
        errno.ENOMEM, errno.EIO, errno.EBADF,
    ),
    'send': SENDING,
    'sendmsg': SENDING,
    'sendfile': (*SENDING, errno.EINVAL, errno.EOVERFLOW),
    'sendto': POSTING,
    'recvfrom': FETCHING,
    'shutdown': (errno.ENOTCONN, errno.EBADF),
    'setsockopt': (errno.EINVAL, errno.ENOPROTOOPT, errno.EPERM, errno.ENOBUFS, errno.ENOMEM, errno.EBADF),
    'getsockopt': (errno.ENOPROTOOPT, errno.ENOBUFS, errno.EBADF),
    'getsockname': (errno.EINVAL, errno.ENOBUFS, errno.EBADF),
    'getpeername': (errno.ENOTCONN, errno.EINVAL, errno.ENOBUFS, errno.EBADF),
    'close': (errno.EIO, errno.ECONNRESET, errno.EBADF),
    'set_wakeup_fd': (errno.EBADF,),
    'signal': (errno.EINVAL,),
    'thread': (errno.EAGAIN,),  # Python raises it as RuntimeError
    'getaddrinfo': RESOLVING,
    'getnameinfo': RESOLVING,
    'lstat': PATHS,
    'unlink': (*PATHS, errno.EPERM, errno.EBUSY, errno.EIO),
    'chmod': (errno.EPERM, errno.ENOENT, errno.EROFS, errno.EIO),
    'fstat': (errno.EIO, errno.EBADF),
    'dup': (errno.EMFILE, errno.EBADF),
    'pread': (errno.EIO, errno.EBADF),
}  # fmt: skip
# The errors of datagram sockets, and of the socket pair whose bytes wake the loop (the doorbell).
OF_MAILBOXES = {'send': POSTING, 'recv': FETCHING, 'connect': ERRORS['connect'][1:]}
OF_BELLS = {
    'send': (errno.ENOBUFS, errno.ENOMEM, errno.EBADF),  # not EAGAIN: a full doorbell wakes the loop anyway
    'recv': (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.EBADF),
}

# No kernel refuses to restore a signal handler, and the program `signals` does not expect that error in a callback. For
# the same reason the last `signal` call of each program, with which `close` restores SIGINT, does not fail. And if
# other code closes the descriptor of a datagram server during `getsockname`, epoll never reports that, so the clients
# of the server repeat their requests for ever.
LEFT_OUT = {('signals', 'signal'), ('datagrams', 'getsockname')}

Case = tuple[str, int, str, int, str, int]  # program, seed, selector, n, name of the call, error
contexts: Any = None  # the TLS contexts of servers and clients


class ListeningKernel(SimKernel):
    """Records each call and the errors with which it can fail."""

    errors: list[tuple[str, tuple[int, ...]]]

    def failing(self, name: str, fd: int) -> int:
        file = self.files.get(fd)
        own: Any = OF_MAILBOXES if isinstance(file, Mailbox) else OF_BELLS if getattr(file, 'private', False) else {}
        self.__dict__.setdefault('errors', []).append((name, own.get(name) or ERRORS[name]))
        return super().failing(name, fd)


def begin(seed: int, kind: str, fail: tuple[int, int]) -> Simulation:
    """Return a simulation that is ready to run a program, and whose only fault is `fail`: (n, error)."""
    simulation = Simulation(seed, selector=kind, faults=False, fail=fail)
    simulation.world.contexts = contexts  # type: ignore[attr-defined]
    simulation.world.at_end = int  # type: ignore[attr-defined]  # does nothing
    return simulation


@cache
def calls(play: str, seed: int, kind: str) -> list[tuple[str, tuple[int, ...]]]:
    """Return the calls of a run without faults, each with its possible errors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('reactor.testing.simulation.SimKernel', ListeningKernel)
        simulation = begin(seed, kind, (-1, errno.EIO))
    simulation.run(lambda r: PLAYS[play](simulation.world))
    return simulation.kernel.errors  # type: ignore[attr-defined]


@cache
def seeds(play: str) -> list[int]:
    """Return the seeds with which a program is run."""
    if PLAYS[play] not in (*PROGRAMS, *ALONE):
        return [0]
    short = [seed for seed in range(AMONG) if len(calls(play, seed, 'epoll')) < LONGEST]
    return short[:SEEDS] or [min(range(AMONG), key=lambda seed: len(calls(play, seed, 'epoll')))]


def beginning() -> list[str]:
    """Return the calls that the construction of a reactor makes; they are not part of a program."""
    kernel = ListeningKernel(faults=False)
    Reactor(kernel=kernel)
    return [name for name, _ in kernel.errors]


def cases() -> list[Case]:
    """Return all cases."""
    found: list[Case] = []
    first = len(beginning()) + 1
    for play in PLAYS:
        if play in SECURED and contexts is None:
            continue
        for seed in seeds(play):
            for kind in KINDS:
                made = calls(play, seed, kind)
                given_back = max((n for n, (name, _) in enumerate(made, 1) if name == 'signal'), default=0)
                for n, (name, errors) in enumerate(made, 1):
                    if n >= first and (play, name) not in LEFT_OUT and n != given_back:
                        found += [(play, seed, kind, n, name, error) for error in errors]
    return found


@cache
def sample() -> list[Case]:
    """Return some of the cases, the same ones each time: each call of each program with each error on one selector."""
    rng, everything = random.Random(1), cases()
    rng.shuffle(everything)
    chosen = {
        (play, name, error): (play, seed, kind, n, name, error) for play, seed, kind, n, name, error in everything
    }
    return sorted(chosen.values())[:: max(1, len(chosen) // SAMPLE)]


def attempt(case: Case) -> str | None:
    """Run a case. Return None if all laws hold, otherwise a line with the case, to run it again, and the failure."""
    play, seed, kind, n, name, error = case
    simulation = begin(seed, kind, (n, error))
    try:
        simulation.run(lambda r: PLAYS[play](simulation.world))
        simulation.world.at_end()  # type: ignore[attr-defined]
        records = simulation.reactor.ledger.records
        lost = [record.number for record in records if getattr(record.exc, 'errno', 0) == errno.EBADF]
        if len(lost) > 1:
            simulation.world.fail(f'law 4: one descriptor was closed, but connections {lost} ended with EBADF')
        why = '; '.join(simulation.reactor.ledger.violations)
    except SimulationFailed as exc:
        why = str(exc).partition(': ')[2].partition('the end of the trace')[0]
    except BaseException as exc:
        why = f'{type(exc).__name__}: {exc}'
    failed = simulation.kernel.failed
    if play in SECURED and failed != name:
        return None  # random keys change some lengths, so the n-th call was a different one
    why = why or ('' if failed else 'the call was not made')
    what = errno.errorcode.get(error, str(error))
    return (
        f'{play} seed={seed} {kind} n={n}: {name} fails with {what} {case!r}: {" ".join(why.split())}' if why else None
    )


@pytest.fixture(autouse=True)
def quiet():
    """Log nothing: thousands of listeners in trouble would each log a line."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(autouse=True)
def secured(request):
    """Set `contexts` for TLS if certificates can be made."""
    global contexts
    try:
        made = request.getfixturevalue('certificates')
    except pytest.skip.Exception as exc:
        print(f'the scenarios with TLS are left out: {exc}')
        contexts = None
    else:
        contexts = (made.server(), made.client())


@pytest.mark.scenario(12, 38, 118)
@pytest.mark.parametrize('part', range(PARTS))
def test_no_law_is_broken_when_one_call_fails(part):
    failures = [line for line in map(attempt, sample()[part::PARTS]) if line is not None]
    assert not failures, '\n'.join(failures)


@pytest.mark.parametrize('kind', KINDS)
def test_a_reactor_that_cannot_be_made_raises_and_leaves_nothing(kind):
    for n, name in enumerate(beginning(), 1):
        for error in ERRORS[name]:
            kernel = SimKernel(selector=kind, faults=False, fail=(n, error))
            try:
                Reactor(kernel=kernel).close()
            except OSError as exc:
                assert exc.errno == error
            else:
                assert (name, error) == ('register', errno.EBADF)  # only epoll checks descriptors on registration
            assert not kernel.files, (name, error)


@pytest.mark.timeout(600)  # the test computes for a long time
def test_every_call_fails_in_one_program_or_another():
    if contexts is None:
        pytest.skip('TLS is untested here: no certificates can be made')
    reached = {name for play in PLAYS for seed in seeds(play) for name, _ in calls(play, seed, 'epoll')}
    assert reached == {*ERRORS}


def test_the_whole(request, capsys):
    if not request.config.getoption('--nth-whole'):
        pytest.skip('testing all calls with all errors takes many minutes: pytest --nth-whole')
    faulthandler.cancel_dump_traceback_later()  # this test takes a long time, but does not hang
    everything, failures, began = cases(), [], time.monotonic()
    context = multiprocessing.get_context('fork')
    with ProcessPoolExecutor(2, mp_context=context) as pool, capsys.disabled():
        for count, line in enumerate(pool.map(attempt, everything, chunksize=100), 1):
            if line is not None:
                failures.append(line)
                print(f'\n{line}')
            if count % 500 == 0 or count == len(everything):
                seconds = time.monotonic() - began
                left = seconds / count * (len(everything) - count)
                done = f'{count} of {len(everything)} runs, {len(failures)} failed'
                print(f'\r{done}, {seconds:.0f} s, {left:.0f} s left   ', end='', flush=True)
        print()
    assert not failures, '\n'.join([f'{len(failures)} of {len(everything)} runs:', *failures])
