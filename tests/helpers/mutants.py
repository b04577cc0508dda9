"""Planted bugs that the simulation must find: each is a change that makes the package break a promise.

This module has the list, and the function that plants one bug in a copy of the package. A mutant changes one place
outside of `reactor/testing`; its anchor text must occur exactly once in the file. A mutant breaks a law, so a run that
reaches the place must fail.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).resolve().parents[2] / 'reactor'


class Mutant(NamedTuple):
    """A change to one place in the package.

    name         a description of the bug
    file         the path within the package
    anchor       the text that is replaced
    replacement  the new text
    law          the promise that the bug breaks
    seed         a seed that finds the bug, given if few seeds do; it is tried before all others
    manner       the simulated system for all seeds, if the bug shows on only one system; '': each seed picks a system
    """

    name: str
    file: str
    anchor: str
    replacement: str
    law: str
    seed: int = 0
    manner: str = ''


def copy_package(folder: Path, mutant: Mutant | None) -> Path:
    """Copy the package to `folder`, with this bug planted; raises ValueError unless the anchor occurs once."""
    shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=shutil.ignore_patterns('__pycache__'))
    if mutant is not None:
        (folder / PACKAGE.name / mutant.file).write_text(plant(mutant))
    return folder


def plant(mutant: Mutant) -> str:
    """Return the text of the mutant's file with the bug in it.

    Raises:
        ValueError: The anchor is not in the file exactly once, or the bug would be in the simulator itself.
    """
    text = (PACKAGE / mutant.file).read_text()
    found = text.count(mutant.anchor)
    if found != 1 or mutant.file.startswith('testing') or mutant.anchor == mutant.replacement:
        raise ValueError(f'mutant {mutant.name!r}: its anchor text is {found} times in {mutant.file}, not once')
    return text.replace(mutant.anchor, mutant.replacement)


MUTANTS = (
    # -- the turn
    Mutant(
        'a stale read event is reported',
        'loop/loop.py',
        'if event == readable and watcher.events & READ and (',
        'if event == readable and (',
        '4: an event belongs to an object that still wants it',
        36,
    ),
    Mutant(
        'a stale write event is reported',
        'loop/loop.py',
        'if mask & WRITE and watcher.events & WRITE:',
        'if mask & WRITE:',
        '4: an event belongs to an object that still wants it',
        37,
        'epoll',
    ),
    Mutant(
        'a timer fires although another timer of the same turn has cancelled it',
        'loop/loop.py',
        'if deadline is None:\n                    continue',
        'if deadline is None:\n                    deadline = now',
        '1: a cancelled call is never reported',
    ),
    Mutant(
        'the loop sleeps although completions are queued',
        'loop/loop.py',
        'if self._soon or self.completions or (self.timers.due',
        'if self._soon or (self.timers.due',
        '1: everything that has happened is reported',
        21,
    ),
    Mutant(
        'an interrupt loses a completion',
        'loop/loop.py',
        '            if signals.interrupted:\n'
        '                signals.raise_interrupt()\n'
        '            completion = handle, fn, args = completions.popleft()\n',
        '            completion = handle, fn, args = completions.popleft()\n'
        '            if signals.interrupted:\n'
        '                signals.raise_interrupt()\n',
        '8: an interrupt loses nothing',
        30,
    ),
    Mutant(
        'an interrupt loses a call',
        'loop/loop.py',
        '            if signals.interrupted:\n'
        '                signals.raise_interrupt()\n'
        '            call = fn, args = soon.popleft()\n',
        '            call = fn, args = soon.popleft()\n'
        '            if signals.interrupted:\n'
        '                signals.raise_interrupt()\n',
        '8: an interrupt loses nothing',
        8,
    ),
    Mutant(
        'calls left over by an interrupt run after the next events',
        'loop/loop.py',
        'self._run_completions(len(self.completions))\n            limit = 0',
        'limit = 0',
        '3: callbacks run in the order in which things happened',
        206,
        'poll',
    ),
    Mutant(
        'calls queued during the calls of a turn run in the same turn',
        'loop/loop.py',
        '        for _ in range(count):\n'
        '            if signals.interrupted:\n'
        '                signals.raise_interrupt()\n'
        '            call = fn, args = soon.popleft()\n',
        '        while soon:\n'
        '            if signals.interrupted:\n'
        '                signals.raise_interrupt()\n'
        '            call = fn, args = soon.popleft()\n',
        '5: a turn is bounded',
    ),
    # -- timers
    Mutant(
        'two timers with the same deadline are swapped',
        'loop/timers.py',
        'self.at[deadline] = OrderedDict({entry: None, timer: None})',
        'self.at[deadline] = OrderedDict({timer: None, entry: None})',
        '3: timers fire in order',
    ),
    Mutant(
        'timers fire early',
        'loop/timers.py',
        'while heap and heap[0] <= now:',
        'while heap and heap[0] <= now + 0.002:',
        'a timer is never early',
    ),
    Mutant(
        'a timer that is moved in the turn in which it is due fires in that turn, too',
        'loop/timers.py',
        'if timer.deadline == new or not self.leave(timer):\n'
        '            self.moved[timer] = self.moved.get(timer, 0) + 1\n',
        'self.leave(timer)\n',
        '1: a timer that was moved fires once, at the new time',
        130,
        'poll',
    ),
    Mutant(
        'a timer cannot be moved to an earlier time',
        'loop/timers.py',
        'self.timers.move(self, self.timers.after(',
        'self.timers.move(self, max(self.deadline or 0, self.timers.clock()) + 0 * self.timers.after(',
        'a timer that was moved fires at the new time',
    ),
    Mutant(
        'a timer that is moved still fires at its old deadline if other timers share that deadline',
        'loop/timers.py',
        '            del found[timer]\n            if not found:',
        '            if not found:',
        '1: a timer that was moved fires once, at the new time',
        101,
    ),
    Mutant(
        'a cancelled timer keeps the loop running',
        'loop/timers.py',
        '            timers.pending = pending\n',
        '            pass\n',
        'run() ends when nothing is left',
    ),
    Mutant(
        'a repeating timer makes up for the calls that it has missed',
        'loop/timers.py',
        'beats = (now - deadline) // self.delay + 1',
        'beats = 1',
        'calls that a repeating timer has missed are skipped',
        62,
    ),
    Mutant(
        'dropping unused deadlines leaves a list that is not a heap',
        'loop/timers.py',
        '            heap[:] = at\n            heapify(heap)\n',
        '            heap[:] = reversed(at)\n',
        '3: timers fire in order',
        209,
        'epoll',
    ),
    Mutant(
        'time limits are checked in the second before they are due',
        'loop/buckets.py',
        'second = ceil(when)',
        'second = int(when)',
        '7: no spin',
    ),
    Mutant(
        'a connection that has ended is still checked for time limits',
        'loop/buckets.py',
        'if bucket is not None and member in bucket:',
        'if bucket is not None and member not in bucket:',
        '9: nothing holds an ended connection',
    ),
    Mutant(
        'a time limit is not checked until a later one is due',
        'loop/buckets.py',
        'timer.deadline is not None and earliest == self._armed:',
        'timer.deadline is not None:',
        'a time limit is at most a second late',
    ),
    # -- watchers
    Mutant(
        'a closed handle stays registered',
        'loop/watcher.py',
        '                self.selector.unregister(handle.fileno() if fd is None else fd)\n',
        '                pass\n',
        '4: a descriptor number is not an identity',
    ),
    Mutant(
        'a closed handle still wants events',
        'loop/watcher.py',
        '        handle.events = 0\n        if handle in self._unreferenced',
        '        if handle in self._unreferenced',
        '1: nothing fires after the end',
    ),
    Mutant(
        'a handle that wants no events stays registered',
        'loop/watcher.py',
        '                self._parked[handle] = None\n                self.selector.unregister(fd)\n',
        '                self.selector.modify(fd, 0, handle)\n',
        '7: the loop does not spin when the peer of a paused connection hangs up',
        8,
    ),
    # -- wakeup, signals, threads
    Mutant(
        'only the first call from another thread wakes the loop',
        'loop/wakeup.py',
        '        calls, soon = self.calls, self._soon\n        self._rung = False\n',
        '        calls, soon = self.calls, self._soon\n',
        '7: the loop does not spin, and calls from other threads are made',
    ),
    Mutant(
        'a wakeup runs only one of the calls from other threads',
        'loop/wakeup.py',
        'for _ in range(len(calls)):',
        'if calls:',
        'calls from other threads are made',
    ),
    Mutant(
        'one of two simultaneous signals is lost',
        'loop/signals.py',
        '# before the flag is cleared: memory may run out here\n                raised[signum] = 0',
        '# first: it may find no memory\n                raised[:] = bytes(NSIG)',
        'every signal that arrives is handled',
        16,
    ),
    Mutant(
        'the previous handler is not restored',
        'loop/claims.py',
        '        if self._kernel.getsignal(self.signum) is self:\n            self._restore()\n',
        '',
        'the previous handler is restored',
    ),
    Mutant(
        'a loop that has run keeps the wakeup descriptor',
        'loop/signals.py',
        '            self._release_unneeded(False)\n',
        '',
        'everything that the loop changes in the process is restored',
    ),
    Mutant(
        'the result of a cancelled call in a thread is reported',
        'loop/threads.py',
        'self.fn = self.on_done = None',
        'self.fn = None',
        '1: a cancelled call is never reported',
        181,
    ),
    Mutant(
        'the handle of a call in a thread is still open when on_done is called',
        'loop/threads.py',
        'and on_done is None and not self.closed\n        self.close()\n',
        'and on_done is None and not self.closed\n',
        '8: an exception leaves no half-changed state',
        148,
        'select',
    ),
    Mutant(
        'threads that have ended still count as running',
        'loop/threads.py',
        '        self._running -= 1\n        self._start_threads()',
        '        self._start_threads()',
        'calls in threads are made',
        8,
    ),
    Mutant(
        'each call in a thread gets its own thread',
        'loop/threads.py',
        'if self._queue and self._running < self._most:',
        'if self._queue:',
        '6: threads are bounded',
    ),
    # -- streams: writing
    Mutant(
        'on_written is called inside write',
        'net/sending.py',
        '                self.loop.completions.append((self, on_written, args))\n        except',
        '                on_written(self, *args)\n        except',
        '2: no callback runs inside a call to the reactor',
    ),
    Mutant(
        'a write overtakes queued bytes',
        'net/sending.py',
        'if self.writer is not None or type(data) is not bytes or not data:',
        'if not self.state.takes_writes or type(data) is not bytes or not data:',
        '3: in order',
    ),
    Mutant(
        'a paused connection reads again when bytes have to be queued',
        'net/sending.py',
        'self.loop.watchers.set_events(self, self.events | WRITE)',
        'self.loop.watchers.set_events(self, 1 | WRITE)',
        '3: on_data is not called while reading is paused',
    ),
    Mutant(
        'a connection that was paused before it opened reads if it has bytes to send',
        'net/stream.py',
        'events = (READ if reading else 0) | (0 if self.writer is None else WRITE)',
        'events = READ if self.writer is None and reading else READ | WRITE',
        '3: on_data is not called while reading is paused',
        38,
    ),
    Mutant(
        'bytes written before the connection is open are not sent until the next write',
        'net/stream.py',
        '| (0 if self.writer is None else WRITE)',
        '| 0',
        '1: written bytes are sent',
    ),
    Mutant(
        'on_drain is lost when the queue falls exactly to the low-water mark',
        'net/sending.py',
        'if writer.full and writer.buffered <= self.options.low_water:',
        'if writer.full and writer.buffered < self.options.low_water:',
        'on_drain is called after a write that returned False',
    ),
    Mutant(
        'writability is watched though nothing is queued',
        'net/sending.py',
        '        if self.writer is None:\n            self.loop.watchers.set_events(self, self.events & ~WRITE)',
        '        if self.writer is SHUT:\n            self.loop.watchers.set_events(self, self.events & ~WRITE)',
        '7: no spin',
    ),
    Mutant(
        'a write after a failure raises',
        'net/sending.py',
        '        return self.writer is SHUT or not self.state.takes_writes',
        '        if self.state.closed and self.ending.exc is not None:\n'
        '            raise self.ending.exc\n'
        '        return self.writer is SHUT or not self.state.takes_writes',
        '8: a write to a peer that is gone raises nothing',
    ),
    Mutant(
        'any number of bytes may be queued',
        'net/sending.py',
        'if weight < self.options.max_buffered:',
        'if self.options.max_buffered:',
        '6: memory is bounded',
        24,
    ),
    Mutant(
        'data received before sending failed is dropped',
        'net/ending.py',
        'self.loop.completions.append((self, type(self).handle_last_reads, ()))',
        'self.loop.completions.append((self, type(self).handle_last_reads, (0,)))',
        'received data is delivered',
        70,
        'poll',
    ),
    Mutant(
        'the error of a failed send is not reported',
        'net/ending.py',
        'exc = ending.exc  # type',
        'exc = None  # type',
        '1: on_close is called with the error',
    ),
    Mutant(
        'write returns False below the high-water mark',
        'net/sending.py',
        'self._wait(writer)\n        return not writer.full',
        'self._wait(writer)\n        return False',
        'a write that returns False is followed by on_drain',
    ),
    # -- streams: ending
    Mutant(
        'the EOF of the peer is lost',
        'net/stream.py',
        '        if not data:\n            self.handle_end()\n            return\n',
        '        if not data:\n            self.pause_reading()\n            return\n',
        '1: every connection ends',
    ),
    Mutant(
        'write_eof is lost when bytes are waiting to be sent',
        'net/sending.py',
        'if self.state.ends_when_sent:',
        'if self.state.closed:',
        'EOF is sent after the last byte',
        8,
    ),
    Mutant(
        'the EOF of the peer is forgotten',
        'net/ending.py',
        'self.state = HALF if state is OPEN else HALF_ENDING',
        'self.state = state',
        '1: when both sides have ended the connection ends',
    ),
    Mutant(
        'the EOF of the peer drops queued bytes',
        'net/ending.py',
        'elif self.buffered:\n            self.begin_closing',
        'elif state.closed:\n            self.begin_closing',
        'written bytes are sent',
        120,
    ),
    Mutant(
        'close drops queued bytes',
        'net/ending.py',
        '        if self.buffered:\n'
        '            self.loop.watchers.set_events(self, WRITE)\n'
        '        else:\n'
        '            self.shut_down()',
        '        self.shut_down()',
        'close sends queued bytes',
    ),
    Mutant(
        'on_data after close',
        'net/ending.py',
        '        self.on_data = None  # further input is read and dropped\n',
        '',
        '1: close stops reading',
    ),
    Mutant(
        'abort() in on_close ends the connection a second time',
        'net/ending.py',
        '        elif self.sock is None and self.origin is None:\n            return\n',
        '        elif self.sock is None and self.origin is None:\n'
        '            if self.on_close is not None:\n'
        '                loop.completions.append((self, self.on_close, (exc,)))\n'
        '            return\n',
        '1: once',
    ),
    Mutant(
        'the linger timer outlives its connection',
        'net/ending.py',
        '            if ending is not None and ending.linger is not None:\n                ending.linger.cancel()\n',
        '',
        '9: the timers of a closed connection are dropped',
    ),
    Mutant(
        'the listener still counts a connection that has ended',
        'net/ending.py',
        '                origin.handle_closed(self)\n',
        '',
        'open_connections counts the open connections',
    ),
    Mutant(
        'a closed connection keeps its data',
        'net/ending.py',
        'self.on_drain = self.on_close = self.data = None\n                if streams.busy',
        'self.on_drain = self.on_close = None\n                if streams.busy',
        '9: a closed connection keeps no object of the program',
    ),
    # -- the writer
    Mutant(
        'the sent part of a buffer is sent again',
        'net/writer.py',
        '        self._skip = sent\n',
        '        self._skip = 0\n',
        '3: each byte is sent once',
    ),
    Mutant(
        'the sent part of a buffer is forgotten',
        'net/writer.py',
        '        sent += self._skip\n',
        '',
        '3: each byte is sent once',
    ),
    Mutant(
        'the position of an on_written mark leaves out the bytes already sent',
        'net/writer.py',
        'self.marks.append((queued, on_written, args))',
        'self.marks.append((queued - self._sent, on_written, args))',
        '3: on_written is called when the kernel has accepted the whole write',
        29,
    ),
    Mutant(
        'on_written is not called until a later byte has been sent',
        'net/writer.py',
        'while marks and marks[0][0] <= self._sent:',
        'while marks and marks[0][0] < self._sent:',
        '3: on_written is called when the kernel has accepted the whole write',
    ),
    Mutant(
        'a queued buffer is not copied',
        'net/writer.py',
        'return bytes(piece)  # type: ignore[arg-type]',
        'return piece  # type: ignore[return-value]',
        'the program may change a buffer as soon as write has returned',
    ),
    # -- listeners
    Mutant(
        'a listener goes on accepting when no descriptor is free',
        'net/listener.py',
        '                    self._batch = 1\n                    self._back_off(exc)\n',
        '                    self._batch = 1\n',
        '7: no spin at the descriptor limit',
        8,
    ),
    Mutant(
        'a listener that paused for lack of descriptors never resumes',
        'net/listener.py',
        '    def _end_back_off(self) -> None:\n        if self._retry is not None:\n'
        '            self._retry.cancel()\n            self._retry = None\n',
        '    def _end_back_off(self) -> None:\n        if self._retry is not None:\n            self._retry.cancel()\n',
        'accepting resumes when descriptors are free again',
        8,
    ),
    Mutant(
        'a closed listener keeps its timer',
        'net/listener.py',
        '        if self._retry is not None:\n            self._retry.cancel()\n            self._retry = None\n'
        '        self.loop',
        '        self.loop',
        '9: no timer outlives its owner',
        34,
        'select',
    ),
    Mutant(
        'a listener that has reached max_connections accepts more clients in the same turn',
        'net/listener.py',
        '            if not self.events:\n                return\n        if self._batch',
        '        if self._batch',
        '6: no more connections than max_connections',
        23,
    ),
    Mutant(
        'a full listener does not resume when there is room again',
        'net/listener.py',
        'if not self.events:\n            self.loop.completions',
        'if not self.events and self._retry is not None:\n            self.loop.completions',
        '1: clients in the backlog are accepted',
        29,
    ),
    Mutant(
        'a paused listener accepts clients',
        'net/listener.py',
        'wanted = not self._paused and self._retry is None and not full',
        'wanted = self._retry is None and not full',
        'no client is accepted while the listener is paused',
    ),
    Mutant(
        'a client that is gone before it is accepted delays the others',
        'net/listener.py',
        '                continue  # this client',
        '                self.loop.watchers.set_events(self, 0)\n                return  # this client',
        '8: a client does no harm to others',
        16,
    ),
    # -- connectors
    Mutant(
        'attempts to connect stay open when another attempt has succeeded',
        'net/connector.py',
        '        for attempt in self._attempts:\n            attempt.close()\n        self._attempts.clear()',
        '        self._attempts.clear()',
        '9: no descriptor leaks',
    ),
    Mutant(
        'the connect timeout keeps running after the connect has ended',
        'net/connector.py',
        'for timer in (self._timer, self._next):',
        'for timer in (self._next,):',
        '9: no timer outlives its owner',
    ),
    Mutant(
        'on_connect after close',
        'net/connector.py',
        '    if stream.state is CONNECTING:\n',
        '    if stream is not None:\n',
        '1: nothing after the end',
    ),
    Mutant(
        'a Unix socket whose backlog is full is not tried again',
        'net/connector.py',
        '                self._addresses.appendleft(address)\n',
        '',
        '1: a connect ends within its timeout',
        69,
    ),
    Mutant(
        'the attempts to connect continue after close()',
        'net/connector.py',
        '        self._end()  # done first',
        '        # done first',
        '9: no descriptor leaks',
    ),
    Mutant(
        'the error of a connect is not read',
        'net/connector.py',
        'error = sock.getsockopt(SOL_SOCKET, SO_ERROR)',
        'error = 0',
        '7: no spin',
        3222,
        'select',
    ),
    # -- datagrams
    Mutant(
        'any number of datagrams may be queued',
        'net/datagram_sending.py',
        'full = self._buffered + self._queued * DATAGRAM_COST >= self._max_queued',
        'full = False',
        '6: memory is bounded',
        158,
        'epoll',
    ),
    Mutant(
        'the bytes of sent datagrams still count as queued',
        'net/datagram_sending.py',
        '            self._queued -= 1\n            self._buffered -= len(data)\n',
        '            self._queued -= 1\n',
        '6: an empty queue accepts a datagram',
        165,
    ),
    Mutant(
        'any number of datagrams is read in a turn',
        'net/datagram.py',
        'for count in range(DATAGRAMS_PER_TURN):',
        'for count in iter(int, 1):',
        '5: the number of datagrams read per turn is bounded',
        276,
        'epoll',
    ),
    Mutant(
        'a datagram socket that its own callback has closed is still read',
        'net/datagram.py',
        '            if not self.events & READ:\n                return  # the last callback',
        '            if not self.loop:\n                return  # the last callback',
        '1: nothing after close',
    ),
    Mutant(
        'on_send_error is called a second time in a turn, without an error',
        'net/datagram_sending.py',
        'if self._error is None:  # otherwise an',
        'if what:  # otherwise an',
        'on_send_error is called at most once per turn',
        177,
    ),
    # -- options and limits
    Mutant(
        'a write of no bytes returns False',
        'net/options.py',
        'self.high_water: int = max(1, high_water)',
        'self.high_water: int = high_water',
        'on_drain is called after a write that returned False',
        67,
    ),
    Mutant(
        'a change of options leaves the old values in place',
        'net/options.py',
        '{**now, **changes}',
        '{**changes, **now}',
        'write returns False when the high-water mark is reached',
    ),
    Mutant(
        'a connection that is sending counts as idle',
        'net/timeouts.py',
        'max(received_at, sent_at)',
        'received_at',
        'a time limit is never early',
        193,
    ),
    Mutant(
        'a read timeout is enforced while reading is paused',
        'net/timeouts.py',
        '(options.read_timeout, reads, ',
        '(options.read_timeout, True, ',
        'a time limit that does not apply does not expire',
    ),
    Mutant(
        'a write timeout is enforced while nothing is queued',
        'net/timeouts.py',
        '(options.write_timeout, waits, ',
        '(options.write_timeout, True, ',
        'a time limit that does not apply does not expire',
        26,
        'epoll',
    ),
    Mutant(
        'all waiting clients are accepted in one turn',
        'net/listener.py',
        'for count in range(self._batch):',
        'for count in range(1 << 20):',
        'law 5',
        242,
    ),
    Mutant(
        'close does not check for unread data',
        'net/ending.py',
        'if state is OPEN and self.writer is None and self.ending is None and self.events & READ:',
        'if state is OPEN and not self.buffered:',
        'data written before close() arrives',
        464,
    ),
    # -- admission
    Mutant(
        'data after a PROXY header is dropped together with the header',
        'admission/proxied.py',
        'taken = self._receive(min(missing, len(seen)))',
        'taken = self._receive(len(seen))',
        'no byte is lost',
        122,
    ),
    Mutant(
        'the time limit for a PROXY header keeps running after the header has arrived',
        'admission/proxied.py',
        '            buffer.timer.cancel()',
        '            pass',
        '9: an ended connection leaves nothing behind',
        9,
        'poll',
    ),
    Mutant(
        'one client too many is accepted',
        'admission/limits.py',
        'len(self._clients) >= self.connections',
        'len(self._clients) > self.connections',
        'no more clients are accepted than the limit allows',
        14,
    ),
    Mutant(
        'a client may send slowly for ever',
        'admission/pace.py',
        'if answered or not stream.events & READ:',
        'if answered or stream.events & READ:',
        'a client that is too slow is disconnected',
        98,
    ),
    Mutant(
        'the limits do not notice the end of a connection',
        'admission/listener.py',
        '            self.limits.handle_closed(stream)\n',
        '            pass\n',
        '9: an ended connection leaves nothing behind',
        12,
    ),
    # -- drain
    Mutant(
        'idle connections are closed before the lame-duck time is over',
        'net/drain.py',
        '(lame_duck, self._check)',
        '(0, self._check)',
        'no connection is closed before the lame-duck time is over',
        1327,
    ),
    Mutant(
        'a listener in a drain is closed while clients are in its accept queue',
        'net/drain.py',
        'if handle.accept_queue_empty():',
        'if handle.sock:',
        'no accepted request is lost',
        431,
    ),
    Mutant(
        'a drain closes a busy connection',
        'net/drain.py',
        'if handle in busy and not handle.closed:',
        'if handle is None:',
        'no accepted request is lost',
        63,
        'poll',
    ),
    Mutant(
        'a drain closes a connection that was just accepted',
        'net/drain.py',
        'return now - since >= min(patience, (self._deadline - since) / 2)',
        'return True',
        'no accepted request is lost',
        95,
    ),
    Mutant(
        'a drain closes a connection with an unread request',
        'net/drain.py',
        'elif handle.unread or handle in suspended:',
        'elif self._loop is None:',
        'no accepted request is lost',
        63,
        'poll',
    ),
    Mutant(
        'a drain never stops',
        'net/drain.py',
        '        self._loop.stop()\n',
        '',
        'a drain stops when nothing is left',
        15,
        'epoll',
    ),
    Mutant(
        'an ended connection still counts as busy',
        'net/ending.py',
        '                    self._end_request(exc)\n',
        '                    pass\n',
        '9: nothing of an ended connection is kept',
        359,
    ),
    # -- other platforms
    Mutant(
        'a connect in progress counts as failed on Windows',
        'net/connector.py',
        'if error in self._kernel.connecting:',
        'if error in (errno.EINPROGRESS, errno.EALREADY):',
        '1: the result of a connect is reported when it is known',
        1,
        'windows',
    ),
    Mutant(
        'a connect in progress is not watched on Windows',
        'net/connector.py',
        'if error in self.loop.kernel.connecting:',
        'if error in (errno.EINPROGRESS, errno.EALREADY):',
        '9: nothing leaks',
        1,
        'windows',
    ),
    Mutant(
        'a wait that seems one clock step too short is mistaken for a poll that ended early',
        'loop/spins.py',
        'waited + self._slack >= timeout',
        'waited >= timeout',
        '7: a selector is replaced when it is broken',
        30,
        'windows',
    ),
    Mutant(
        'abort uses the linger option of Linux everywhere',
        'net/ending.py',
        'SO_LINGER, self.loop.kernel.reset_on_close',
        "SO_LINGER, b'\\1\\0\\0\\0\\0\\0\\0\\0'",
        'abort() resets the connection',
        1,
        'windows',
    ),
    Mutant(
        'an ICMP message closes a UDP server socket',
        'net/datagram_sending.py',
        'if exc.errno in LOST_ERRORS:',
        'if exc.errno in LOST_ERRORS or exc.errno == errno.ECONNRESET:',
        'an error fails one datagram, never the socket',
        25,
        'windows',
    ),
    Mutant(
        'the limit on the number of sockets in select on Windows is applied to descriptor numbers',
        'loop/watcher.py',
        'not self._has_room(fd):',
        'not (self._has_room(fd) and fd < 512):',
        '10: the reactor behaves the same on every selector',
        14,
        'windows',
    ),
    Mutant(
        'an abort raises on systems where the options of a disconnected socket cannot be set',
        'net/ending.py',
        '            except OSError:\n                pass  # the socket is no longer connected, so there',
        '            except ConnectionError:\n                pass  # the socket is no longer connected, so there',
        '2: abort() raises nothing',
        30,
        'kqueue',
    ),
    Mutant(
        'accepted sockets are assumed to inherit the options of the listener',
        'net/listener.py',
        'if not self._options_inherited:',
        'if self._closed:',
        'TCP_NODELAY is set on every connection',
        1,
        'kqueue',
    ),
    # -- in one turn: a callback changes another handle before that handle's own event is dispatched
    Mutant(
        'pausing is ignored when a write has failed',
        'net/stream.py',
        '        elif self.state.reads:',
        '        elif self.state.receives:',
        '3: on_data is not called while reading is paused',
        73,
        'select',
    ),
    Mutant(
        'a write is accepted after close() of a failed connection',
        'net/ending.py',
        'bytes received before that are no longer wanted\n        self.refuse_writes()\n',
        'bytes received before that are no longer wanted\n            return\n        self.refuse_writes()\n',
        'a write after close() raises',
        36,
    ),
    Mutant(
        'a datagram socket that was paused in on_datagram goes on reading',
        'net/datagram.py',
        '            if not self.events & READ:\n                return  # the last callback',
        '            if self.sock is None:\n                return  # the last callback',
        'on_datagram is not called while reading is paused',
        164,
    ),
    Mutant(
        'a send error is reported after close()',
        'net/datagram_sending.py',
        'if self.on_send_error is not None and self.state is OPEN:',
        'if self.on_send_error is not None:',
        '1: nothing fires after the end',
        44,
    ),
    Mutant(
        'a connection that was closed in the turn in which it connected becomes open again',
        'net/connector.py',
        '    if stream.state is CONNECTING:\n        stream.origin = ESTABLISHED\n',
        '    if stream.origin is not ESTABLISHED:\n        stream.origin = ESTABLISHED\n',
        '1: nothing fires after the end',
    ),
    Mutant(
        'an idler is called once more after it was closed',
        'loop/idle.py',
        '        if self.fn is not None:\n            self.fn(*self.args)\n',
        '        self.fn(*self.args)\n',
        '1: nothing fires after the end',
        100,
        'poll',
    ),
    Mutant(
        'a notifier that was triggered and then closed calls its function',
        'loop/notifier.py',
        'if fn is not None and self._triggered:',
        'if self._triggered:',
        '1: nothing fires after the end',
        12,
    ),
    Mutant(
        'the result of a lookup is reported after close()',
        'net/resolver.py',
        'self.on_done = self._timer = self._call = None',
        'self._timer = self._call = None',
        '1: a cancelled call is never reported',
        4,
    ),
    Mutant(
        'an accepted connection that was closed before on_connect becomes open again',
        'net/stream.py',
        '        if self.closed:  # a TLS connection may have failed by now, and then only `on_close` is called\n',
        '        if self.tls is not None and self.closed:\n',
        '1: nothing fires after the end',
        212,
        'epoll',
    ),
    # -- bugs that an oracle would miss if it used the same condition as the code
    Mutant(
        'on_drain is called although no write has returned False',
        'net/sending.py',
        'if writer.full and writer.buffered <= self.options.low_water:',
        'if writer.buffered <= self.options.low_water:',
        '3: on_drain follows a write that returned False',
        3,
    ),
    Mutant(
        '`buffered` is wrong in on_close',
        'net/ending.py',
        'return 0 if self.writer is None else self.writer.buffered',
        'return 0 if self.writer is None or self.state is CLOSED else self.writer.buffered',
        '3: in on_close, `buffered` is the number of bytes that the kernel never accepted',
        3,
    ),
    Mutant(
        'an abort ends the connection like close(), without a reset',
        'net/ending.py',
        'if self.sock is not None:\n            try:\n                self.sock.setsockopt',
        'if self.sock is not None and exc is not None:\n            try:\n                self.sock.setsockopt',
        'an abort resets the connection, so the peer knows that data is missing',
        6,
    ),
    Mutant(
        'an error keeps its traceback',
        'net/ending.py',
        'self.finish(exc.with_traceback(None))',
        'self.finish(exc)',
        '9: a caught OSError is kept without its traceback',
        1,
    ),
    Mutant(
        'a time limit is checked a minute late if bytes were sent or received in the meantime',
        'net/stream.py',
        '            timeouts.second = self.loop.timers.buckets.add(self, next_look)',
        '            timeouts.second = self.loop.timers.buckets.add(self, next_look + 60)',
        'a connection ends at most a second after its time limit',
    ),
    Mutant(
        'a listener whose accept has failed pauses for a minute',
        'net/listener.py',
        'ACCEPT_PAUSE = 0.1',
        'ACCEPT_PAUSE = 60.0',
        'a listener accepts again after 100 ms',
        24,
    ),
    Mutant(
        'half of max_buffered is enough to abort a connection',
        'net/sending.py',
        'if weight < self.options.max_buffered:',
        'if weight * 2 < self.options.max_buffered:',
        '6: the limit is the value that was configured',
        24,
    ),
    Mutant(
        'only eight timers run in a turn',
        'loop/loop.py',
        'self._run_timers(timers.collect(self.now))',
        'self._run_timers(min(8, timers.collect(self.now)))',
        'all timers that are due in a turn run in it',
        62,
    ),
    Mutant(
        'the loop sleeps too long for its timers',
        'loop/loop.py',
        '        timeout = 0 if self._soon else self._wait()\n',
        '        timeout = 0 if self._soon else self._wait()\n        timeout = timeout and timeout + 0.5\n',
        'a timer is late by no more than the rounding',
    ),
    Mutant(
        'the clock is not read after a poll that has timed out',
        'loop/loop.py',
        '        self.now = self._clock()\n        if not ready and timeout != 0:\n',
        '        if ready or timeout == 0:\n'
        '            self.now = self._clock()\n'
        '        if not ready and timeout != 0:\n',
        '`now` is the time at which the poll returned',
    ),
    Mutant(
        'calls run before the timers of their turn',
        'loop/loop.py',
        '        if timers.due or (timers.heap and timers.heap[0] <= self.now):\n'
        '            self._run_timers(timers.collect(self.now))\n',
        '        if self._soon:\n'
        '            self._run_soon(len(self._soon))\n'
        '        if timers.due or (timers.heap and timers.heap[0] <= self.now):\n'
        '            self._run_timers(timers.collect(self.now))\n',
        '3: a turn runs events, timers, calls and completions, in this order',
    ),
    Mutant(
        'the last call made with call_soon runs first',
        'loop/loop.py',
        'call = fn, args = soon.popleft()',
        'call = fn, args = soon.pop()',
        '3: calls run in the order of call_soon',
        3,
    ),
    Mutant(
        'a read event is handled twice',
        'loop/loop.py',
        '                    watcher.handle_read()\n                    continue',
        '                    watcher.handle_read()\n'
        '                    if watcher.events & READ:\n'
        '                        watcher.handle_read()\n'
        '                    continue',
        '5: one recv for each read event',
        4,
    ),
    Mutant(
        'linger lasts for hours',
        'net/ending.py',
        'self.loop.timers.later(self.options.linger, Connection',
        'self.loop.timers.later(self.options.linger * 100, Connection',
        'close() ends within linger',
        36,
    ),
)

# Bugs in the TLS code. The simulated worlds of `tls_worlds.py` find each bug whose second item is ''; the test that is
# named there finds the others. The programs that find the bugs above do not use TLS.
TLS_MUTANTS: tuple[tuple[Mutant, str], ...] = (
    # -- TLS
    (
        Mutant(
            'a write over TLS raises the exceptions of OpenSSL',
            'net/tls.py',
            '        except session.ssl.SSLWantReadError:\n'
            '            session.held = []\n'
            '            return self.hold(pieces, on_written, args)\n'
            '        except session.ssl.SSLError as exc:\n',
            '        except ZeroDivisionError as exc:\n',
            '2: only documented exceptions are raised',
        ),
        '',
    ),
    (
        Mutant(
            'an error of a TLS stream is never reported',
            'net/tls.py',
            '            self._break(exc)\n        elif',
            '            session.more = True\n        elif',
            '1: every connection ends once',
        ),
        '',
    ),
    (
        Mutant(
            'OpenSSL gets all received bytes at once',
            'net/session.py',
            'while begin < size and len(pieces) < RECORDS_PER_TURN and (end := record_end(data, begin)):',
            'while begin < size and len(pieces) < RECORDS_PER_TURN and (end := record_end(data, begin) and size):',
            '5: a turn processes only a few records of a connection',
        ),
        '',
    ),
    (
        Mutant(
            'any number of records is decrypted in a turn',
            'net/session.py',
            'RECORDS_PER_TURN = 4 ',
            'RECORDS_PER_TURN = 400 ',
            '5: a turn processes only a few records of a connection',
        ),
        '',
    ),
    (
        Mutant(
            'a TLS stream that ends without close_notify counts as a clean end',
            'net/session.py',
            '            exc = self._cut_short()\n        return pieces, exc',
            '            self.ended = True\n        return pieces, exc',
            'a stream that was cut short ends with an error',
        ),
        '',
    ),
    (
        Mutant(
            'a complete record is not processed until the next one arrives',
            'net/session.py',
            'self.more = not self.ended and record_end(data, begin) > 0',
            'self.more = False',
            'liveness',
        ),
        '',
    ),
    (
        Mutant(
            'data that arrives together with the end of the handshake is lost',
            'net/session.py',
            'self._incoming = buffers.incoming.read() + self._incoming',
            'buffers.incoming.read()',
            'every byte arrives',
        ),
        'testing/test_simulated_tls.py::test_a_program_keeps_the_laws_over_tls[echo-faults-10 seeds more]',
    ),
    (
        Mutant(
            'half a record is passed to OpenSSL',
            'net/session.py',
            'return 0 if whole else size',
            'return size',
            '5: OpenSSL gets only whole records',
        ),
        '',
    ),
    (
        Mutant(
            'records without data are not counted',
            'net/session.py',
            'self.empty += 1 + length // EMPTY_WEIGHT',
            'pass',
            '5: a peer that sends nothing but key updates is cut off',
        ),
        'net/test_tls.py::test_a_flood_of_new_keys_is_cut_off',
    ),
    (
        Mutant(
            'the count of records without data is never reset',
            'net/session.py',
            '                pieces.append(piece)\n                self.empty = 0\n',
            '                pieces.append(piece)\n',
            '8: a correct client is not cut off',
        ),
        'net/test_tls.py::test_new_keys_with_data_between_them_are_not_a_flood',
    ),
    (
        Mutant(
            'a connection is cut off after an ordinary number of records without data',
            'net/tls.py',
            'if most is not None and session.empty > most and',
            'if session.empty > 1 and',
            '8: a correct client is not cut off',
        ),
        '',
    ),
    (
        Mutant(
            'a write of a mebibyte stays in the buffer of OpenSSL',
            'net/session.py',
            '        write, outgoing = self._write, self.buffers.outgoing\n',
            '        import ssl\n\n'
            '        self.buffers.__class__.spare = getattr(self.buffers.__class__, "spare", [])\n'
            '        self.buffers.__class__.spare.append(ssl.MemoryBIO())\n'
            '        self.buffers.__class__.spare[-1].write(b"".join(pieces))\n'
            '        write, outgoing = self._write, self.buffers.outgoing\n',
            '6: a connection does not keep memory that it no longer needs',
        ),
        'net/test_tls.py::test_a_connection_keeps_no_memory_of_sent_and_received_data',
    ),
    (
        Mutant(
            'bytes that one connection left in the shared buffers are sent by another',
            'net/session.py',
            '        left = self.buffers.empty()\n        parts = []\n',
            "        left = b'', b''\n        parts = []\n",
            '8: other connections are not affected',
        ),
        'net/test_tls.py::test_data_left_over_from_a_failed_call_is_not_sent_to_another_peer',
    ),
    (
        Mutant(
            'one of the writes that are waiting for a new handshake is lost',
            'net/handshake.py',
            'del held[:index]\n                return',
            'del held[: index + 1]\n                return',
            '3: writes are sent in order, all of them',
        ),
        'net/test_tls.py::test_data_written_during_a_new_handshake_is_sent_after_it_in_order',
    ),
    (
        Mutant(
            'a close during a new handshake is forgotten',
            'net/handshake.py',
            '            session.last = None\n            last(self)\n',
            '            session.last = None\n',
            'liveness',
        ),
        'net/test_tls.py::test_data_written_during_a_new_handshake_is_sent_after_it_in_order',
    ),
    (
        Mutant(
            'the writes that are waiting for a new handshake have no limit',
            'net/handshake.py',
            'if self.refuses(self.has_ended_writing()) or self.overflows(weight):',
            'if self.refuses(self.has_ended_writing()):',
            '6: every queue has a limit',
        ),
        'net/test_tls.py::test_writing_too_much_during_a_new_handshake_aborts_the_connection',
    ),
    (
        Mutant(
            'the end of a TLS stream is handled twice',
            'net/tls.py',
            'if not self.state.receives or not self.events & READ:\n            return  # the connection is over',
            'if self.sock is None or not (self.events & READ or self.state != OPEN or self.on_eof):\n'
            '            return  # the connection is over',
            '3: queued bytes are sent first',
        ),
        'testing/test_simulated_tls.py::test_a_program_keeps_the_laws_over_tls[half_closes-faults-10 seeds more]',
    ),
    (
        Mutant(
            'data received while reading was paused is never delivered',
            'net/tls.py',
            '            self.decrypt_later()  # the selector does not report records that are buffered here\n',
            '            pass\n',
            'liveness',
        ),
        'net/test_tls.py::test_reading_can_be_paused_between_records_that_have_arrived_already',
    ),
    (
        Mutant(
            'a close sends no close_notify',
            'net/tls.py',
            '            self.send_close_notify()\n            if self.ending is None:',
            '            if self.ending is None:',
            '8: a client that ends correctly has a clean end',
        ),
        'net/test_tls.py::test_a_close_is_a_clean_end_for_the_other_side',
    ),
    (
        Mutant(
            'one step of a handshake processes all received bytes',
            'net/session.py',
            'while count < HANDSHAKE_RECORDS and (',
            'while (',
            '5: each step of a handshake is bounded',
        ),
        'net/test_tls.py::test_a_handshake_in_records_of_one_byte_is_handled_in_steps',
    ),
    (
        Mutant(
            'records received before sending failed are dropped',
            'net/tls.py',
            'if self.tls.more and self.sock is not None and self.events & READ:',
            'if False:',
            'received data is delivered',
        ),
        'net/test_tls.py::test_all_records_received_before_a_failed_write_are_delivered',
    ),
    (
        Mutant(
            'a write_eof during a handshake is forgotten if the handshake fails',
            'net/handshake.py',
            'return self.tls.last is not None or Stream.has_ended_writing(self)',
            'return Stream.has_ended_writing(self)',
            '2: a write after the end raises',
        ),
        'net/test_tls.py::test_a_write_after_an_end_that_waits_for_a_failed_handshake_raises',
    ),
)

# Bugs, each with the name of a fuzz target. One of the inputs in the corpus of that target reveals the bug.
FUZZ_MUTANTS = (
    (
        Mutant(
            'a port in a PROXY header may begin with a zero',
            'net/proxy_header.py',
            ' and str(int(word)).encode() == word else',
            ' else',
            'anything that does not follow the specification exactly is refused',
        ),
        'proxy_header',
    ),
    (
        Mutant(
            'a delimiter that arrives in two pieces is not found',
            'framing.py',
            'self._searched = max(0, len(self) - len(delimiter) + 1)',
            'self._searched = len(self)',
            'the messages are the same however the bytes were cut',
        ),
        'framing',
    ),
    (
        Mutant(
            'an HTTP request may have two Host headers',
            'observe/responder.py',
            "if key == 'host' and key in headers:",
            'if False:',
            'an invalid request is refused',
        ),
        'live_page',
    ),
    (
        Mutant(
            'a command accepts True as a number',
            'observe/commands.py',
            'if type(value) is not int or not',
            'if not isinstance(value, int) or not',
            'nothing is guessed',
        ),
        'control_socket',
    ),
    (
        Mutant(
            'a TLS stream that is cut short ends cleanly',
            'net/session.py',
            'if self.over and exc is None and not (self.more or self.ended):\n            exc = self._cut_short()',
            'if self.over and exc is None and not (self.more or self.ended):\n            self.ended = True',
            'the end of a connection without a close_notify is an error',
        ),
        'tls_records',
    ),
    (
        Mutant(
            'the sent part of a write is sent again',
            'net/writer.py',
            '        self._skip = sent\n\n    def reached',
            '        self._skip = 0\n\n    def reached',
            '4: every byte reaches the peer exactly once',
        ),
        'simulation',
    ),
)
