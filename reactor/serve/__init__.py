"""Running it for real: workers on one port, started anew when they die or are to be replaced.

    import sys
    import reactor.serve

    def main(r, listeners):  # in each worker
        r.listen_tcp(None, 0, on_data, sock=listeners[0])

    if __name__ == '__main__':
        sys.exit(reactor.serve.run(main, listen=['0.0.0.0:8000']))

Beside it, `systemd` and `certificates` are for one process as well as for many.
"""

from .running import run
from .workers import Workers

__all__ = ['Workers', 'run']
