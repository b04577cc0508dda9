"""The seed's load: connections at a fixed rate, each asks once and waits for its delayed answer.

Owns the schedule. The rule: a time counts from when the schedule wanted the connection, and nothing waits for an answer
but the connection that asked.
"""

import selectors
import time

from .sockets import REQUEST, SOURCES, TIMEOUT, connect

AT_ONCE = 50  # connections opened between two looks at the answers, however far behind


def answer_times(port, rate, seconds, size):
    """(times until an answer of `size` bytes, ascending; most connections open at once)."""
    total = int(rate * seconds)
    times, opened, most, last_answer = [], 0, 0, time.perf_counter()
    started = last_answer
    with selectors.DefaultSelector() as selector:
        while len(times) < total and time.perf_counter() - last_answer < TIMEOUT:
            due = min(total, int((time.perf_counter() - started) * rate) + 1, opened + AT_ONCE)
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
