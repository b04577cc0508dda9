"""A simulated operating system for testing servers.

It simulates failures of every kind and takes no real time. The same seed always gives the same run.

    SimKernel         the simulated operating system: `Reactor(kernel=SimKernel(seed))`
    Simulation        one checked run: `Simulation(seed).run(main)`
    SimulationFailed  raised by a run that failed, with the seed and the end of the trace
    NotSimulated      raised when a simulated program uses the real network, the real clock or a real thread
    World             the object passed to each program: it has the reactor, and makes random decisions and failures
    SimProcess        another process on the same network, which can be killed and started again: `World.process`

The selectors epoll, poll and select, and the sockets on them, behave like Linux: the project's tests run random
sequences of socket calls on both, and compare each result and the readiness after it. They also compare the callbacks
of streams. These differences stay:

- Buffer sizes and latencies are drawn from the seed. They are smaller and longer than those of the loopback of Linux,
  so that partial sends are found.
- The computer has the addresses 127.0.0.0/8, 10.0.0.0/8, ::1, fd00::/8 and those of the option `hosts`. All sockets are
  on this computer, and connections to other addresses are refused.
- Most socket options are stored, but have no effect. SO_SNDBUF, SO_RCVBUF and TCP_KEEPIDLE are examples.
- If listeners share a port with SO_REUSEPORT, the one that gets a client is drawn from the seed. Linux computes it from
  the addresses.
- If a connection is reset, bytes still in flight are lost or arrive, which is drawn from the seed.
- A SYN that a full backlog has dropped is sent again each second. Linux doubles the time.
- Selectors report in the order of registration, or in a random order (the fault `select.shuffled`). On Linux, epoll
  reports in the order in which descriptors became ready.
- An IPv6 socket that connects to an IPv4 address and then to an IPv6 address works. Linux keeps it in IPv4 mode.
- The byte counts of a TCP connection leave out SYN and FIN, and no segment waits for others (Nagle's algorithm).
- There is no ancillary and no out-of-band data, and there are no child processes, pipes and terminals.
- kqueue and Windows are simulated from their documentation, and are not compared with a real system.

With the profile 'hostile', the simulated world is harsher: peers vanish without a word, partitions last minutes,
look-ups take seconds, bytes arrive about when a time limit of the program ends or one a second, and threads interleave
with the loop. Connections without a time limit then fail the run, because they wait for a vanished peer for ever. The
modules `hostile` and `threads` have the rules.

The pytest fixture is in `reactor.testing.fixture`. `python -m reactor.testing --seeds N` tests the reactor itself.
"""

from .kernel import SimKernel
from .processes import SimProcess
from .reality import NotSimulated
from .simulation import Simulation, SimulationFailed
from .world import World

__all__ = ['NotSimulated', 'SimKernel', 'SimProcess', 'Simulation', 'SimulationFailed', 'World']
