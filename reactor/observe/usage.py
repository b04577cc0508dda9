"""What the operating system knows about a process and about a listening socket: descriptors, queues and drops.

Everything here costs a few microseconds, however many descriptors are open, so it can be read at each scrape.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from typing import Any, NamedTuple

TCP_QUEUE = struct.Struct('=II')  # tcpi_unacked and tcpi_sacked, which hold length and limit of a listening socket
TCP_QUEUE_OFFSET = 24  # in struct tcp_info
SO_MEMINFO, DROPS_OFFSET = 55, 32  # the last of nine numbers, SK_MEMINFO_DROPS; the module `socket` lacks the names
NO_LIMIT = b'unlimited'


def open_descriptors(pid: int) -> int | None:
    """Return how many descriptors a process has open, or None if it is unknown.

    Linux counts them since version 6.2. Listing them instead would take 37 ms for 18,000.
    """
    try:
        return os.stat(f'/proc/{pid}/fd').st_size or None
    except OSError:
        return None


def descriptor_limit(pid: int) -> int | None:
    """Return how many descriptors a process may have open, or None if it is unknown or without limit."""
    try:
        with open(f'/proc/{pid}/limits', 'rb') as file:
            for line in file:
                if line.startswith(b'Max open files'):
                    soft = line.split()[3]
                    return None if soft == NO_LIMIT else int(soft)
    except (OSError, ValueError, IndexError):
        pass
    return None


class Queue(NamedTuple):
    """The accept queue of a listening socket.

    Attributes:
        length: Connections that wait to be accepted.
        limit: The length at which the kernel drops new connections; their clients try again after a second.
        drops: Segments dropped so far, because the queue was full or the socket was closing.
    """

    length: int
    limit: int
    drops: int


def accept_queue(sock: Any) -> Queue | None:
    """Return the accept queue of a listening TCP socket, or None if it is unknown: Linux only, and not Unix sockets."""
    if sys.platform != 'linux' or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    try:
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return None
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_QUEUE_OFFSET + TCP_QUEUE.size)
        memory = sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, DROPS_OFFSET + 4)
    except OSError:
        return None
    length, limit = TCP_QUEUE.unpack_from(info, TCP_QUEUE_OFFSET)
    return Queue(length, limit, int.from_bytes(memory[DROPS_OFFSET:], sys.byteorder))
