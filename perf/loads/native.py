"""The load in C, `load.c`: closed loops and fixed rates, over TCP, Unix sockets and datagrams.

A load in Python would be slower than the servers, so that they would sleep between requests.
"""

import json
import subprocess
from pathlib import Path

from perf.common.compiler import compiled
from perf.common.server import Failed

SOURCE = Path(__file__).with_name('load.c')
LONGER = 60  # seconds beyond the length of the load after which it counts as stuck


def load(address, seconds, *, connections=100, request=0, reply=100, depth=1, reconnect=False, datagrams=False, rate=0):
    """Run the load and return its figures: `answered`, `seconds`, and the times `p50_us`, `p99_us` and `p999_us`.

    address      the port on 127.0.0.1, or the path of a Unix socket
    connections  connections in use; with `reconnect` and a rate, there are as many as needed
    request      bytes of a request; 0: a short GET
    reply        bytes of a reply
    depth        requests that are sent at once
    reconnect    a new connection for each request, which the server closes
    datagrams    send datagrams
    rate         requests a second; 0: as many as are answered
    """
    sizes = ('-c', connections, '-q', request, '-r', reply, '-k', depth, '-R', rate, '-t', seconds)
    flags = ['-n'] * reconnect + ['-d'] * datagrams
    done = subprocess.run(
        [compiled(SOURCE), *map(str, sizes), *flags, str(address)],
        capture_output=True, text=True, timeout=seconds + LONGER, check=False,
    )  # fmt: skip
    if done.returncode:
        raise Failed(f'the load ended with {done.returncode}: {done.stderr.strip()}')
    return json.loads(done.stdout)
