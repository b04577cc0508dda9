"""The state of a service, as its parent knows it: for health checks, metrics and the control socket."""

from __future__ import annotations

from typing import Any, NamedTuple

STATES = ('serving', 'starting', 'draining', 'restarting', 'hung')
LATE = 3.5  # seconds without a report after which a worker is hung: three reports are missing


class WorkerState(NamedTuple):
    """The state of a worker.

    Attributes:
        name: The number of its slot. While another worker serves in the slot, the process id is appended: '0-4711'.
        state: 'serving'; 'starting' until `main` has returned; 'draining'; 'restarting' while the slot waits to start
            its worker again after a failure; 'hung' if the worker has not reported for three and a half seconds.
        pid: Process id; None while restarting.
        started: When the process was started, in seconds since 1970; None while restarting.
        report_age: Seconds since its last report; None before the first one.
    """

    name: str
    state: str
    pid: int | None = None
    started: float | None = None
    report_age: float | None = None


class Health(NamedTuple):
    """The state of a service, as returned by `Workers.health`.

    Attributes:
        draining: Whether the whole service shuts down.
        workers: The workers, those that drain included, and slots that wait to restart their worker.
        restarts: For each slot, how many of its workers have ended unexpectedly or failed to start.
        replaces_hung: Whether hung workers are killed and replaced, see `hang_timeout` of `run`.
        reload_failed: Whether the last reload has failed, so that old workers still serve.
        log_lines_lost: How many lines the log of the parent has lost, if `log=` of `run` is set.
    """

    draining: bool
    workers: list[WorkerState]
    restarts: dict[str, int]
    replaces_hung: bool
    reload_failed: bool = False
    log_lines_lost: int = 0

    def count(self, state: str) -> int:
        """Return how many workers are in this state."""
        return sum(worker.state == state for worker in self.workers)

    @property
    def ready(self) -> bool:
        """Whether new clients will be served: a worker serves, and the service does not shut down."""
        return not self.draining and self.count('serving') > 0

    @property
    def stuck(self) -> bool:
        """Whether only a restart of the service can help: all workers are hung, and are not replaced."""
        return not self.replaces_hung and 0 < len(self.workers) == self.count('hung')

    def as_dict(self) -> dict[str, Any]:
        """Return the state as a dict, for sending as JSON."""
        return {
            'draining': self.draining,
            'workers': [worker._asdict() for worker in self.workers],
            'restarts': self.restarts,
            'reload_failed': self.reload_failed,
            'log_lines_lost': self.log_lines_lost,
        }


class Snapshots(dict[str, dict[str, Any]]):
    """The counters of workers, as returned by `Workers.stats`: an ordinary dict that also has the state of the service.

    Attributes:
        health: The state of the service.
        listeners: The listening sockets that the parent holds, each as (name of its worker, socket). The name is 'all'
            if all workers share the socket.
    """

    def __init__(self, health: Health, listeners: list[tuple[str, Any]]) -> None:
        super().__init__()
        self.health = health
        self.listeners = listeners
