"""The `Driver` for asyncio; `tests/helpers/both_loops.py` has the base class and the programs that are compared.

This module is run in a separate process. Its arguments are the name of a program and how many seeds to play (0, 1, 2
and so on). It prints the trace of each seed as a line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from tests.helpers.both_loops import READ, WRITE, Driver, Raised, play


class Loop(asyncio.SelectorEventLoop):
    """An asyncio loop with the program's clock and selector."""

    def __init__(self, clock: Any, selector: Any) -> None:
        self.clock = clock
        super().__init__(selector)

    def time(self) -> float:
        return float(self.clock.now)


class Asyncio(Driver):
    def __init__(self, clock: Any, selector: Any) -> None:
        super().__init__(clock, selector)
        self.loop = Loop(clock, selector)
        self.loop.set_exception_handler(self.handle_exception)
        self.watched: dict[int, int] = {}

    def handle_exception(self, loop: Any, context: dict[str, Any]) -> None:
        exc = context.get('exception')
        if not isinstance(exc, Raised):
            raise SystemExit(f'asyncio says {context}')
        if 'transport' not in context:
            self.note('errors', 'Raised')

    def turn(self) -> None:
        self.loop.stop()
        self.loop.run_forever()

    def run(self) -> None:
        self.loop.run_forever()

    def stop(self) -> None:
        self.loop.stop()

    def call_soon(self, fn: Any, *args: Any) -> None:
        self.loop.call_soon(fn, *args)

    def call_soon_threadsafe(self, fn: Any, *args: Any) -> None:
        self.loop.call_soon_threadsafe(fn, *args)

    def call_later(self, delay: float, fn: Any, *args: Any) -> Any:
        return self.loop.call_later(delay, fn, *args)

    def call_at(self, deadline: float, fn: Any, *args: Any) -> Any:
        return self.loop.call_at(deadline, fn, *args)

    def watch(self, fd: int, events: int, fn: Any) -> None:
        for event, add, remove in (
            (READ, self.loop.add_reader, self.loop.remove_reader),
            (WRITE, self.loop.add_writer, self.loop.remove_writer),
        ):
            if events & event & ~self.watched.get(fd, 0):
                add(fd, fn, event)  # adding `fd` again would drop a call that is already due in this turn
            elif not events & event:
                remove(fd)
        self.watched[fd] = events

    def add_signal_handler(self, signum: int, fn: Any, *args: Any) -> None:
        self.loop.add_signal_handler(signum, fn, *args)

    def remove_signal_handler(self, signum: int) -> bool:
        return self.loop.remove_signal_handler(signum)

    def connect(self, sock: Any, side: Any) -> None:
        task = self.loop.create_task(self.loop.connect_accepted_socket(lambda: Protocol(side), sock))
        while not task.done():
            self.turn()
        task.result()

    def close(self) -> None:
        self.loop.close()


class Protocol(asyncio.Protocol):
    """The protocol of one side of a connection."""

    def __init__(self, side: Any) -> None:
        self.side, side.conn = side, self
        self.waiting: list[int] = []
        self.ended = self.peer_ended = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.set_write_buffer_limits(0)
        self.pause_reading, self.resume_reading = transport.pause_reading, transport.resume_reading
        self.close, self.abort = transport.close, transport.abort

    def data_received(self, data: bytes) -> None:
        self.side.on_data(data)

    def eof_received(self) -> bool:
        self.peer_ended = True
        if self.side.keeps_open:
            self.side.on_eof()
        if self.ended:
            self.close_when_sent()
        return bool(self.side.keeps_open)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.side.on_close(exc)

    def resume_writing(self) -> None:
        waiting, self.waiting = self.waiting, []
        for number in waiting:
            self.side.on_written(number)

    def write(self, data: bytes, number: int) -> None:
        self.transport.write(data)
        if self.transport.get_write_buffer_size():
            self.waiting.append(number)
        elif not self.transport.is_closing():  # a transport that is closing has failed to send
            self.side.driver.loop.call_soon(self.side.on_written, number)

    def write_eof(self) -> None:
        self.ended = True
        self.transport.write_eof()
        if self.peer_ended:
            self.close_when_sent()

    def close_when_sent(self) -> None:
        """Close the connection after both sides have ended."""
        self.transport.close()


if __name__ == '__main__':
    for seed in range(int(sys.argv[2])):
        print(json.dumps(play(sys.argv[1], seed, Asyncio)), flush=True)
