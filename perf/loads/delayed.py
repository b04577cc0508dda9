"""The load of the seed workload: connections at a fixed rate, each with one request and a delayed reply.

Times are measured from when a connection was due by the schedule, so they show when a server falls behind. A slow
reply delays no other connection.
"""

import selectors
import time

from .sockets import REQUEST, SOURCES, TIMEOUT, connect

AT_ONCE = 50  # the most connections opened before replies are read again, even when the load is behind schedule


def answer_times(port, rate, seconds, size, tick=0.0):
    """Open `rate` connections a second for `seconds`; each reply has `size` bytes.

    With a `tick`, the connections that are due within so many seconds are opened together, at the end of the tick.

    Returns (sorted list of the seconds until each reply, largest number of connections open at once).
    """
    total = int(rate * seconds)
    times, opened, most, last_answer = [], 0, 0, time.perf_counter()
    started = last_answer
    with selectors.DefaultSelector() as selector:
        while len(times) < total and time.perf_counter() - last_answer < TIMEOUT:
            elapsed = time.perf_counter() - started
            elapsed = elapsed // tick * tick if tick else elapsed
            due = min(total, int(elapsed * rate) + 1, opened + AT_ONCE)
            for index in range(opened, due):
                sock = connect(port, f'127.0.0.{1 + index % SOURCES}')
                sock.send(REQUEST)
                selector.register(sock, selectors.EVENT_READ, started + index / rate)
            opened = due
            most = max(most, opened - len(times))
            for key, _ in selector.select(0):
                selector.unregister(key.fileobj)
                last_answer = time.perf_counter()
                if len(key.fileobj.recv(65536)) == size:
                    times.append(last_answer - key.data)
                key.fileobj.close()
        for key in list(selector.get_map().values()):
            key.fileobj.close()
    return sorted(times), most
