"""Serving in production: several worker processes on one port, restarted when they die and replaced on SIGHUP.

    import sys
    import reactor.serve

    def main(r, listeners):  # in each worker
        r.listen_tcp(None, 0, on_data, sock=listeners[0])

    if __name__ == '__main__':
        sys.exit(reactor.serve.run(main, listen=['0.0.0.0:8000']))

The modules `systemd` and `certificates` are useful with a single process, too.
"""

from .health import Health, Snapshots, WorkerState
from .logs import JSONFormatter, TextFormatter
from .running import run
from .worker import WorkerListeners
from .workers import Workers

__all__ = [
    'Health', 'JSONFormatter', 'Snapshots', 'TextFormatter', 'WorkerListeners', 'WorkerState', 'Workers', 'run',
]  # fmt: skip
