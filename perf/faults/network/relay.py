"""A relay between two hosts that loses, delays, duplicates and reorders packets, like the kernel's netem.

The relay is used even where netem exists, because netem does not report how many packets it delayed or duplicated.
Packets pass unchanged between two TUN devices, or are lost. The faults that affect the n-th packet in a direction
depend only on n and the seed.
"""

import fcntl
import heapq
import os
import random
import selectors
import struct
import time

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
STDIN = 0
LARGEST = 65536  # size of the largest packet in bytes
BATCH = 256  # packets read from one device before the other device is served
WAITING = 100_000  # packets that may be in transit in one direction; further packets are lost


class Faults:
    """The faults that affect the packets of one direction.

    loss       share of the packets that are lost
    delay      seconds for which each packet is in transit
    reorder    share of the packets that take longer, so that later packets overtake them
    late       maximum of the additional seconds, which are evenly distributed
    duplicate  share of the packets that arrive twice
    """

    def __init__(self, seed, loss=0.0, delay=0.0, reorder=0.0, late=0.005, duplicate=0.0):
        self.random = random.Random(seed).random
        self.loss = loss
        self.delay = delay
        self.reorder = reorder
        self.late = late
        self.duplicate = duplicate
        self.counts = dict.fromkeys(('packets', 'lost', 'late', 'doubled', 'overflowed'), 0)

    def times(self):
        """Return the delays of the next packet's copies in seconds: two if it is duplicated, none if it is lost."""
        counts, dice = self.counts, self.random
        counts['packets'] += 1
        # Draw all numbers for every packet, so that one fault does not change which packets another fault affects.
        lost, late, how_late, doubled = dice(), dice(), dice(), dice()
        if lost < self.loss:
            counts['lost'] += 1
            return ()
        delay = self.delay
        if late < self.reorder:
            counts['late'] += 1
            delay += how_late * self.late
        if doubled < self.duplicate:
            counts['doubled'] += 1
            return delay, delay
        return (delay,)


class Line:
    """The packets in transit in one direction, ordered by due time; packets due together keep their order."""

    def __init__(self, faults, waiting=WAITING):
        self.faults = faults
        self.limit = waiting
        self.in_transit = []
        self.number = 0

    def put(self, now, packet):
        for after in self.faults.times():
            if len(self.in_transit) >= self.limit:
                self.faults.counts['overflowed'] += 1
                continue
            heapq.heappush(self.in_transit, (now + after, self.number, packet))
            self.number += 1

    def take(self, now):
        """Return the packets that are due, in order."""
        due = []
        while self.in_transit and self.in_transit[0][0] <= now:
            due.append(heapq.heappop(self.in_transit)[2])
        return due

    def wait(self, now):
        """Return the seconds until the next packet is due, or None."""
        return max(0.0, self.in_transit[0][0] - now) if self.in_transit else None


def open_tun():
    """Create a TUN device; return (descriptor, name). The device is removed when the descriptor is closed."""
    fd = os.open('/dev/net/tun', os.O_RDWR | os.O_NONBLOCK)
    answer = fcntl.ioctl(fd, TUNSETIFF, struct.pack('16sH22x', b'relay%d', IFF_TUN | IFF_NO_PI))
    return fd, answer[:16].rstrip(b'\0').decode()


def carry(control, seed, **faults):
    """Create two TUN devices, send their names to the parent, and carry packets between them.

    The parent may move the devices to other namespaces.

    faults  the arguments of `Faults`, the same for both directions
    """
    lines = [Line(Faults(f'{seed} {side}', **faults)) for side in (0, 1)]
    tuns = [open_tun(), open_tun()]
    control.send([name for _, name in tuns])

    def counts():
        return {name: sum(line.faults.counts[name] for line in lines) for name in lines[0].faults.counts}

    forward([fd for fd, _ in tuns], lines, control, {'counts': counts})


def forward(tuns, lines, control, commands):
    """Forward packets, and answer `commands` on standard input until end of file."""
    with selectors.DefaultSelector() as selector:
        selector.register(STDIN, selectors.EVENT_READ)
        for side, tun in enumerate(tuns):
            selector.register(tun, selectors.EVENT_READ, side)
        while True:
            now = time.monotonic()
            waits = [wait for wait in (line.wait(now) for line in lines) if wait is not None]
            for key, _ in selector.select(min(waits, default=None)):
                if key.data is not None:
                    receive(tuns[key.data], lines[key.data], time.monotonic())
                elif line := os.read(STDIN, 4096):
                    control.do(line, commands)
                else:
                    return
            for side, line in enumerate(lines):
                for packet in line.take(time.monotonic()):
                    send(tuns[1 - side], packet)


def receive(tun, line, now):
    for _ in range(BATCH):
        try:
            packet = os.read(tun, LARGEST)
        except OSError:
            return  # no more packets, or the device is down; the selector reports it when it is up again
        line.put(now, packet)


def send(tun, packet):
    try:
        os.write(tun, packet)
    except OSError:
        pass  # the device is down: the packet is lost, as on a cut wire
