"""The parent process, which starts, restarts, replaces and stops the workers.

Each worker has a slot. A slot owns listening sockets and has at most two workers at a time: one that serves, and one
that is starting or draining. The sockets of a slot stay open when a worker exits, so the next worker serves the
connections in their queues.

There is one exception. The kernel distributes connections among all sockets that listen on the port, even if no worker
accepts from them. So while a slot waits to restart its worker after a failure and another slot serves, the sockets of
the waiting slot are closed, and new connections reach the workers that are alive.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable
from typing import Any

from .. import Reactor
from ..loop.log import log
from ..net.drain import check_times
from . import systemd
from .addresses import ListenAddress
from .first_process import reap_orphans
from .health import Health, Snapshots, WorkerState
from .logs import lines_lost
from .messages import GRACE, RESTART, STRAY
from .slot import Slot
from .survey import Survey, WorkerAnswer
from .team import Team, WorkerSlot
from .worker_process import CHECKS_EVERY, WorkerProcess

SUCCEEDED = 'the last reload succeeded'
INTERRUPTED, QUIT = 130, 131  # the exit statuses that a shell reports for a program ended by Ctrl-C or by SIGQUIT


class Workers(Team):
    """All workers; `run` passes it to `on_start`.

    `drain`, `replace`, `grow` and `shrink` have the same effect as the signals, and can be called by the program.

    Attributes:
        addresses: The addresses that the workers listen on, in the order of `listen`: (host, port, ...) or a path.
    """

    def __init__(
        self,
        r: Reactor,
        argv: list[str],
        listen_addresses: list[ListenAddress],
        drain_timeout: float,
        start_timeout: float,
        hang_timeout: float | None,
    ) -> None:
        self.r = r
        self.argv = argv
        self.listen_addresses = listen_addresses
        self.patience: float = drain_timeout + GRACE
        self.start_timeout = start_timeout
        self.hang_timeout = hang_timeout
        self.addresses: list[Any] = []
        self.status: int = 0
        self.slots: list[Slot] = []  # empty during shutdown
        self.leaving: set[WorkerProcess] = set()
        self.restarts: dict[str, int] = {}
        self.times: tuple[float, ...] = ()
        self._round: deque[tuple[Slot, WorkerProcess | None]] = deque()  # (slot, worker to replace)
        self._another_round = False
        self.fixed: dict[str, str] = {}  # what only a restart can change, see `messages.Terms`
        self._differences: list[str] = []  # the differences from `fixed` that have been logged
        self._outcome: str | None = None  # of the last reload, once one has failed
        self._notified: tuple[Callable[..., bool], str | None] | None = None  # how systemd was notified last

    def stats(self) -> Snapshots:
        """Return the latest counters of each worker, including workers that drain; they are at most a second old.

        This method is a source for `reactor.observe`.

        Returns:
            A dict that maps the name of each worker to `Stats.as_dict()` with `'pid'` added. The name is the number of
            the worker's slot. A worker that drains after another one has taken its place is called '0-4711', with its
            process id. The attribute `health` of the dict has the state of the service.
        """
        shared = {address.shared for address in self.listen_addresses}
        listeners = {
            sock: 'all' if sock in shared else str(slot.number) for slot in self.slots for sock in slot.listeners
        }
        found = Snapshots(self.health(), [(name, sock) for sock, name in listeners.items()])
        found.update((name, child.counters) for name, child in self._named().items() if child.counters)
        return found

    def health(self) -> Health:
        """Return the state of the service and of each worker."""
        workers = [child.state(name) for name, child in self._named().items()]
        workers += [WorkerState(str(slot.number), 'restarting') for slot in self.slots if not slot.occupied]
        hang = self.hang_timeout is not None
        return Health(
            not self.slots, workers, dict(self.restarts), hang, self._outcome not in (None, SUCCEEDED), lines_lost()
        )

    def _named(self) -> dict[str, WorkerProcess]:
        found: dict[str, WorkerProcess] = {}
        serving = [slot.serving for slot in self.slots]
        starting = [slot.starting for slot in self.slots]
        for child in [*serving, *starting, *sorted(self.leaving, key=lambda child: -child.since)]:
            if child is not None:
                name = str(child.slot.number)
                found[f'{name}-{child.process.pid}' if child.replaced or name in found else name] = child
        return found

    def pids(self) -> dict[str, int]:
        """Return the process id of the serving worker for each slot. Slots without a serving worker are left out."""
        return {str(slot.number): slot.serving.process.pid for slot in self.slots if slot.serving}

    def ask(self, request: str, on_answers: Callable[[list[WorkerAnswer]], object], only: str | None = None) -> None:
        """Ask each worker to describe its reactor; workers that drain are asked, too.

        Args:
            request: The question, as `worker.described` takes it.
            on_answers: Called as `on_answers(answers)`, in a later turn, with a `WorkerAnswer` for each worker. It is
                called when all have answered, and at the latest after a second.
            only: The name of the only worker to ask, as in `stats`. If there is none, `answers` is empty.
        """
        workers = {name: child for name, child in self._named().items() if only in (None, name)}
        Survey(self.r, workers, request, on_answers)

    def begin(self, count: int, on_start: Any) -> None:
        """Called once by `run`: start `count` workers and handle signals."""
        # The first socket listens at once, so that clients can wait in its queue. The others listen when their workers
        # are ready.
        self.slots = [Slot(self, number, listening=not number) for number in range(count)]
        self.addresses = [sock.getsockname() for sock in self.slots[0].listeners]
        self.r.add_signal_handler(signal.SIGTERM, self.drain)
        self.r.add_signal_handler(signal.SIGINT, self.interrupt)
        self.r.add_signal_handler(signal.SIGHUP, self.replace)
        self.r.add_signal_handler(signal.SIGTTIN, self.grow)
        self.r.add_signal_handler(signal.SIGTTOU, self.shrink)
        if signal.getsignal(signal.SIGQUIT) is signal.SIG_DFL:
            self.r.add_signal_handler(signal.SIGQUIT, self.quit)
        for signum in STRAY:
            if signal.getsignal(signum) is signal.SIG_DFL:
                self.r.add_signal_handler(signum, self.ignore, signum)
        reap_orphans(self.r)
        for slot in self.slots:
            slot.start()
        self.r.call_every(CHECKS_EVERY, self.check_silence).unref()
        systemd.watchdog(self.r)
        if on_start is not None:
            on_start(self.r, self)

    def drain(self, timeout: float | None = None, lame_duck: float = 0) -> None:
        """Have all workers drain and exit. A second call can only make the time shorter.

        Args:
            timeout: Seconds until the remaining connections are reset. None: the times that `run` was given.
            lame_duck: Seconds of `timeout` in which clients are still accepted.

        Raises:
            TypeError, ValueError: A time is not a number of seconds, or `lame_duck` is longer than `timeout`.
        """
        if timeout is not None:
            self.times = check_times(timeout, lame_duck)
            for child in self.leaving:
                child.drain(*self.times)
        while self.slots:
            self.slots.pop().remove()
        for address in self.listen_addresses:
            address.close()
        self.go_on()

    def interrupt(self) -> None:
        """Have all workers drain and exit. If they are already draining, kill them."""
        if self.slots:
            return self.drain()
        self.status = INTERRUPTED
        for child in self.leaving:
            child.process.kill()

    def quit(self) -> None:
        """Kill all workers at once, and end."""
        self.drain()
        self.status = QUIT
        for child in self.leaving:
            child.process.kill()

    def ignore(self, signum: signal.Signals) -> None:
        """Called for a signal that would end the process by default, and means nothing here."""
        log('warning', '%s is ignored: it has no meaning for this program', signum.name)

    def grow(self) -> None:
        """Add a worker. Its socket listens only when the worker is ready, so that no client waits for its start."""
        if self.slots:
            try:
                slot = Slot(self, len(self.slots), listening=False)
            except OSError as exc:
                log('warning', 'cannot add worker %s: %s', len(self.slots), exc)
                return
            self.slots.append(slot)
            slot.start()

    def shrink(self) -> None:
        """Remove a worker, except the last one."""
        if len(self.slots) > 1:
            self.slots.pop().remove()
            self.go_on()

    def replace(self) -> None:
        """Replace all workers, one after another. All calls during a round together cause one more round."""
        self._another_round = bool(self._round)
        if self._round:
            log('info', 'a reload is under way; another one follows it')
            return
        self._differences = []
        if self._outcome is not None:
            self._outcome = SUCCEEDED
        self._round.extend((slot, slot.starting or slot.serving) for slot in self.slots)
        self.go_on()

    def compare(self, child: WorkerProcess, fixed: dict[str, str]) -> None:
        """Called when a worker has started, with what a restart of its program would change: log that once a reload."""
        here = self.fixed
        found = [f'{name}{fixed.get(name)} instead of {here[name]}' for name in here if fixed.get(name) != here[name]]
        if found and found != self._differences:
            self._differences = found
            log('warning', 'the program of %s has %s: %s', child, '; '.join(found), RESTART)

    def give_up(self, slot: WorkerSlot) -> None:
        """Called when a worker failed to start in `slot`. If it was a replacement, cancel the rest of the round."""
        if self._round and self._round[0][0] is slot:
            self._outcome = f'the last reload failed: {len(self._round)} of {len(self.slots)} workers were not replaced'
            log('warning', '%s; correct the program and send SIGHUP again', self._outcome)
            self._round.clear()

    def check_silence(self) -> None:
        """Called twice a second: look for workers that do not report, see `count_silence`."""
        serving = [slot.serving for slot in self.slots if slot.serving is not None]
        for child in [*serving, *(child for child in self.leaving if child.ready)]:
            child.count_silence()

    def serves(self) -> bool:
        """Return whether any worker serves."""
        return any(slot.serving is not None for slot in self.slots)

    def go_on(self) -> None:
        """Called after each change: replace the next worker, or stop the loop if all workers have exited."""
        serves = self.serves()
        for slot in self.slots:
            slot.listen_while_waiting(not serves)
        if not self._replacing():
            if self._another_round:
                self.replace()
            if not self.slots and not self.leaving:
                self.r.stop()
        self._notify_manager()

    def _replacing(self) -> bool:
        while self._round:
            slot, old = self._round[0]
            if slot in self.slots and slot.serving in (None, old):
                draining = [child for child in self.leaving if child.slot is slot]
                for child in draining:
                    child.hurry()
                if not slot.starting and not draining:
                    slot.start()
                return True
            self._round.popleft()
        return False

    def _notify_manager(self) -> None:
        now = self._notified
        if not self.slots:
            now = systemd.stopping, None
        elif self._round:
            now = systemd.reloading, None
        elif all(slot.serving for slot in self.slots):
            now = systemd.ready, self._outcome
        if now is not None and now != self._notified:
            self._notified = notify, text = now
            notify() if text is None else notify(text)
