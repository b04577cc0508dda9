"""Test a server in simulation: hundreds of systems and networks, each with other faults, in a second.

Run it:    python examples/test_with_simulation.py            (or with pytest)
Once more: python examples/test_with_simulation.py --seed 3   (the seed that a failure names)

The room below has a bug that no laptop shows: whoever floods it is cut off, but is a member until `on_close`. Who
speaks in between is thrown out as well, for writing to somebody whose connection was closed.
"""

import sys

import pytest

from reactor.testing import SimulationFailed

pytest_plugins = ['reactor.testing.fixture']


class Room:
    def __init__(self, r, host, port, mended):
        self.mended, self.members = mended, []  # a set has no order that a seed could repeat
        self.server = r.listen_tcp(host, port, self.on_data, on_connect=self.on_connect, on_close=self.on_close)

    def on_connect(self, conn):
        conn.data = b''
        self.members.append(conn)

    def on_data(self, conn, data):
        *lines, conn.data = (conn.data + data).split(b'\n')
        for line in lines:
            for member in self.members:
                if member is not conn and not (self.mended and member.closed):
                    member.write(line + b'\n')
        if len(conn.data) > 100:
            conn.abort()

    def on_close(self, conn, exc):
        self.members.remove(conn)


def evening(world, mended):
    """Some guests talk, one of them without end, and all go home after a while."""
    room = Room(world.r, *world.address(), mended)
    words = [b'hello\n', b'how are you?\n', b'blah ' * 50]
    guests = [world.r.connect_tcp(*room.server.address, on_close=lambda conn, exc: None) for _ in range(6)]
    for number, guest in enumerate(guests):
        guest.write(words[number % 3] * world.random.randrange(1, 5))
        world.r.call_later(10, guest.close)
    world.r.call_later(20, room.server.close)


def test_a_room_in_which_nobody_suffers_for_another(simulate):
    simulate(lambda world: evening(world, mended=True))


def test_simulation_finds_the_bug(simulate):
    with pytest.raises(SimulationFailed, match='ConnectionClosed'):
        simulate(lambda world: evening(world, mended=False))


if __name__ == '__main__':
    sys.exit(pytest.main([__file__, *sys.argv[1:]]))
