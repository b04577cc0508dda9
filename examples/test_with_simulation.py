"""Test a server in simulation, on hundreds of systems and networks with different faults, within seconds.

    $ python examples/test_with_simulation.py
    ...
    2 passed in ...

The tests can also be run with pytest. A test that fails prints the seed that failed. To run one test with one seed:

    $ python examples/test_with_simulation.py -k fixed --seed 3

The chat room below has a bug that does not show on a developer's machine. A client that floods the room is
disconnected, but stays a member until `on_close` is called. If another member writes before that, the write to the
closed connection raises, and the member that wrote is disconnected as well.
"""

import sys

import pytest

from reactor.testing import SimulationFailed

pytest_plugins = ['reactor.testing.fixture']


class Room:
    def __init__(self, r, host, port, fixed):
        self.fixed, self.members = fixed, []  # not a set: its order would differ between runs with the same seed
        self.server = r.listen_tcp(host, port, self.on_data, on_connect=self.on_connect, on_close=self.on_close)

    def on_connect(self, conn):
        conn.data = b''
        self.members.append(conn)

    def on_data(self, conn, data):
        *lines, conn.data = (conn.data + data).split(b'\n')
        for line in lines:
            for member in self.members:
                if member is not conn and not (self.fixed and member.closed):
                    member.write(line + b'\n')
        if len(conn.data) > 100:
            conn.abort()

    def on_close(self, conn, exc):
        self.members.remove(conn)


def evening(world, fixed):
    """Six guests talk, and two of them talk too much; all leave after ten seconds."""
    room = Room(world.r, *world.address(), fixed)
    words = [b'hello\n', b'how are you?\n', b'blah ' * 50]
    guests = [world.r.connect_tcp(*room.server.address, on_close=lambda conn, exc: None) for _ in range(6)]
    for number, guest in enumerate(guests):
        guest.write(words[number % 3] * world.random.randrange(1, 5))
        world.r.call_later(10, guest.close)
    world.r.call_later(20, room.server.close)


def test_the_fixed_room_breaks_no_law(simulate):
    simulate(lambda world: evening(world, fixed=True))


def test_simulation_finds_the_bug(simulate):
    with pytest.raises(SimulationFailed, match='ConnectionClosed'):
        simulate(lambda world: evening(world, fixed=False))


if __name__ == '__main__':
    plugin = ['-p', 'reactor.testing.fixture']  # this plugin adds the option --seed to pytest
    sys.exit(pytest.main([__file__, *plugin, *sys.argv[1:]]))
