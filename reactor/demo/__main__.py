"""The command line of the experiment."""

from __future__ import annotations

import argparse

from .. import run
from .server import serve

ap = argparse.ArgumentParser()
ap.add_argument('cmd')
ap.add_argument('--port', type=int)
ap.add_argument('--delay', type=float)
ap.add_argument('--no-stats', action='store_true')
a = ap.parse_args()
run(lambda r: serve(r, '127.0.0.1', a.port, delay=a.delay, reuse_port=False, seconds=None, stats=not a.no_stats))
print('TCP server exited.')
