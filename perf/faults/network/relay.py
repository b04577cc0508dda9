"""A line between two hosts that loses, delays, doubles and overtakes, as the kernel's netem does where there is one.

It is used everywhere all the same: netem tells nobody how many packets came late or twice.

Owns two TUN devices and the packets under way between them. Knows nothing of what is in a packet: each goes out as it
came in, or does not. The rule: what happens to the n-th packet of a direction depends on the seed and on n alone.
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
LARGEST = 65536  # bytes of a packet
BATCH = 256  # packets read from one device before the other has its turn
WAITING = 100_000  # packets that may be under way in one direction; further ones are lost


class Faults:
    """What happens to packets of one direction.

    loss       share of packets that vanish
    delay      seconds that each is under way
    reorder    share of packets that come later than that, so that those behind overtake them
    late       seconds by which, at most; evenly spread
    duplicate  share of packets that come twice
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
        """After how many seconds the next packet comes out: once for each time that it does."""
        counts, dice = self.counts, self.random
        counts['packets'] += 1
        # The same number of throws for each packet, so that one fault does not change the order of another.
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
    """The packets under way in one direction, by when they are due; those due at once in the order of their coming."""

    def __init__(self, faults, waiting=WAITING):
        self.faults = faults
        self.limit = waiting
        self.under_way = []
        self.number = 0

    def put(self, now, packet):
        for after in self.faults.times():
            if len(self.under_way) >= self.limit:
                self.faults.counts['overflowed'] += 1
                continue
            heapq.heappush(self.under_way, (now + after, self.number, packet))
            self.number += 1

    def take(self, now):
        """The packets that are due, in order."""
        due = []
        while self.under_way and self.under_way[0][0] <= now:
            due.append(heapq.heappop(self.under_way)[2])
        return due

    def wait(self, now):
        """Seconds until the next one is due, None when there is none."""
        return max(0.0, self.under_way[0][0] - now) if self.under_way else None


def open_tun():
    """(descriptor, name) of a new TUN device; it is gone when the descriptor is closed."""
    fd = os.open('/dev/net/tun', os.O_RDWR | os.O_NONBLOCK)
    answer = fcntl.ioctl(fd, TUNSETIFF, struct.pack('16sH22x', b'relay%d', IFF_TUN | IFF_NO_PI))
    return fd, answer[:16].rstrip(b'\0').decode()


def carry(control, seed, **faults):
    """Carry packets between two new TUN devices, whose names are told first and which may be moved to other namespaces.

    faults  the arguments of `Faults`, the same for both directions
    """
    lines = [Line(Faults(f'{seed} {side}', **faults)) for side in (0, 1)]
    tuns = [open_tun(), open_tun()]
    control.say([name for _, name in tuns])

    def counts():
        return {name: sum(line.faults.counts[name] for line in lines) for name in lines[0].faults.counts}

    forward([fd for fd, _ in tuns], lines, control, {'counts': counts})


def forward(tuns, lines, control, commands):
    """Until standard input ends, on which `commands` are answered."""
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
                elif said := os.read(STDIN, 4096):
                    control.do(said, commands)
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
            return  # no more now, or the device is down: it is ready again when it is up
        line.put(now, packet)


def send(tun, packet):
    try:
        os.write(tun, packet)
    except OSError:
        pass  # a device that is down takes nothing: lost, as on a wire that is cut
