"""Lets libvirt use a reactor as its event loop. The program libvirt_events.py uses it.

It needs libvirt-python: `apt-get install libvirt-dev pkg-config gcc`, then `pip install libvirt-python==VERSION` with
the version of libvirt-dev. Or `apt-get install python3-libvirt`, for the Python of Debian.
"""

import os
import threading
from itertools import count

import libvirt

import reactor


class Watch:
    """What libvirt wants to know about a descriptor. Its thread may be any; `sync` is called in the loop."""

    def __init__(self, r, number, fd, events, callback, opaque):
        self.r, self.number, self.fd, self.wanted, self.callback, self.opaque = r, number, fd, events, callback, opaque
        # A duplicate, because libvirt may watch a descriptor twice, and a reactor watches each number once.
        self.duplicate = os.dup(fd)
        self.handle = None
        self.removed = self.freed = False

    def sync(self):
        """Make the reactor wait for what is wanted now."""
        if self.removed:
            if self.handle is not None:
                self.handle.close()
            os.close(self.duplicate)
            return
        # Libvirt also asks for errors and hang-ups. Both are reported as READ, and libvirt sees them when it reads.
        events = reactor.READ * bool(self.wanted & libvirt.VIR_EVENT_HANDLE_READABLE)
        events |= reactor.WRITE * bool(self.wanted & libvirt.VIR_EVENT_HANDLE_WRITABLE)
        if self.handle is None:
            self.handle = self.r.watch_fd(self.duplicate, events, self.on_ready)
        else:
            self.handle.set_events(events)

    def on_ready(self, handle, event):
        if not self.removed:
            theirs = libvirt.VIR_EVENT_HANDLE_READABLE if event == reactor.READ else libvirt.VIR_EVENT_HANDLE_WRITABLE
            self.callback(self.number, self.fd, theirs, self.opaque)


class Timer:
    """A timer of libvirt, which repeats until it is changed or removed; fewer than 0 milliseconds: it does not run."""

    def __init__(self, r, number, milliseconds, callback, opaque):
        self.r, self.number, self.wanted, self.callback, self.opaque = r, number, milliseconds, callback, opaque
        self.timer = None
        self.removed = self.freed = False

    def sync(self):
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.wanted >= 0 and not self.removed:
            self.timer = self.r.call_later(self.wanted / 1000, self.on_due)

    def on_due(self):
        self.timer = None
        self.sync()
        if not self.removed:
            self.callback(self.number, self.opaque)


class LibvirtLoop:
    """Registers a reactor as libvirt's event loop. Make it before the first connection; it cannot be undone.

    Libvirt calls these methods in every thread in which it is used, and holds locks meanwhile. So they only note what
    is wanted, and the loop does it.
    """

    def __init__(self, r):
        self.r, self.thread, self.numbers = r, threading.get_ident(), count(1)
        self.watches, self.timers = {}, {}
        libvirt.virEventRegisterImpl(
            lambda *args: self.add(Watch, self.watches, *args),
            lambda number, events: self.update(self.watches[number], events),
            lambda number: self.remove(self.watches.pop(number)),
            lambda *args: self.add(Timer, self.timers, *args),
            lambda number, milliseconds: self.update(self.timers[number], milliseconds),
            lambda number: self.remove(self.timers.pop(number)),
        )

    def add(self, kind, table, *args):
        number = next(self.numbers)
        item = table[number] = kind(self.r, number, *args)
        self.sync(item)
        return number

    def update(self, item, wanted):
        item.wanted = wanted
        self.sync(item)

    def remove(self, item):
        item.removed = True
        self.sync(item)
        return 0

    def sync(self, item):
        if threading.get_ident() == self.thread:
            self.sync_in_loop(item)
        else:
            self.r.call_soon_threadsafe(self.sync_in_loop, item)

    def sync_in_loop(self, item):
        if not item.freed:
            item.sync()
        if item.removed and not item.freed:
            item.freed = True
            self.r.call_soon(libvirt.virEventInvokeFreeCallback, item.opaque)  # later: libvirt holds a lock now
