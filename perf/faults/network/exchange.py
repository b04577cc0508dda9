"""One run of `transfer` on both hosts of a faulty network: start it, turn faults on and off, and judge the result.

Neither side is trusted alone. The data that one side received is compared with what the other side says that it sent
or, if the connection broke, with what it should have sent. It is also counted how many connections ended without a
report.
"""

import time
from collections import Counter

from perf.faults.child import Child

from .namespaces import HOSTS
from .transfer import FIRST_PORT, Pattern

LOOK_EVERY = 0.05  # seconds between two checks of both sides
QUIET = 3  # successive checks without an open connection after which the exchange counts as ended
CONNECTOR, LISTENER = 0, 1  # numbers of the hosts


def stream(size, hold=False, **timeouts):
    """Describe a connection: `size` bytes each way; `hold`: leave it open; `timeouts`: for `set_timeouts`."""
    return {'bytes': size, 'hold': hold, 'timeouts': timeouts}


class Step:
    """An action during an exchange; it is taken after the previous steps.

    act    called to take the action
    share  the share of the bytes that must have arrived first
    after  seconds to wait after those bytes have arrived
    """

    def __init__(self, act, share=0.0, after=0.0):
        self.act = act
        self.share = share
        self.after = after
        self.reached = self.done = None  # times on the monotonic clock, which is the same in all processes

    def look(self, share):
        """Take the action if it is due; return whether it has been taken."""
        now = time.monotonic()
        if self.reached is None and share >= self.share:
            self.reached = now
        if self.done is None and self.reached is not None and now >= self.reached + self.after:
            self.act()
            self.done = time.monotonic()
        return self.done is not None


class Exchange:
    """One run; `run` returns when all connections have ended, or have been aborted after the timeout.

    timeout          seconds for the whole run
    connect_timeout  seconds for each connect
    keepalive        the option of `connect_tcp`, used on both sides
    tls              whether to use TLS
    steps            `Step`s, in order
    progress         called like `Run.progress`
    """

    def __init__(
        self,
        network,
        streams,
        *,
        timeout,
        connect_timeout=60,
        keepalive=None,
        tls=False,
        steps=(),
        progress=None,
    ):
        self.network = network
        self.streams = streams
        self.timeout = timeout
        self.connect_timeout = connect_timeout
        self.keepalive = keepalive
        self.tls = tls
        self.steps = list(steps)
        self.progress = progress or (lambda *_: None)
        self.total = 2 * sum(one['bytes'] for one in streams)
        self.ends = [{}, {}]

    def run(self):
        both = {'streams': self.streams, 'host': HOSTS[LISTENER], 'keepalive': self.keepalive, 'tls': self.tls}
        inside = self.network.inside
        with Child('network.transfer:listen', prefix=inside(LISTENER), **both) as listener:
            listener.receive()
            both |= {'source': HOSTS[CONNECTOR], 'timeout': self.connect_timeout}
            with Child('network.transfer:connect', prefix=inside(CONNECTOR), **both) as connector:
                connector.receive()
                self.watch(connector, listener)
                self.ends = [{end['port']: end for end in side.ask('ends')} for side in (connector, listener)]

    def watch(self, *sides):
        """Watch both sides until neither has a connection; after the timeout, abort the connections that remain."""
        began, quiet = time.monotonic(), 0
        while quiet < QUIET:
            looks = [side.ask('look') for side in sides]
            received, passed = sum(look['received'] for look in looks), time.monotonic() - began
            self.progress(received, self.total, f'{received / 1e6:,.0f} MB, {received / 1e6 / passed:,.1f} MB/s')
            self.take_steps(received)
            quiet = 0 if any(look['open'] for look in looks) else quiet + 1
            if passed > self.timeout:
                for side in sides:
                    side.ask('give_up')
            time.sleep(LOOK_EVERY)

    def take_steps(self, received):
        for step in self.steps:
            if not step.look(received / self.total if self.total else 1.0):
                return

    def judge(self):
        """Return the figures of the run."""
        ends = [end for side in self.ends for end in side.values()]
        received = sum(end['received'] for end in ends)
        lasted = max((end['seconds'] for end in ends), default=0.0)
        return {
            'GB': received / 1e9,
            'MB/s': received / 1e6 / lasted if lasted else 0.0,
            'seconds': lasted,
            'connections': len(self.streams),
            'complete': sum(all(self.complete(side.get(port)) for side in self.ends) for port in self.ends[CONNECTOR]),
            'errors': dict(Counter(end['error'] for end in ends if end['error'])),
            'streams_that_differ': self.differing(),
            'unexplained_ends': self.unexplained(),
            'hung': sum(end['hung'] for end in ends),
            'longest_stall_s': max((end['stall'] for end in ends), default=0.0),
        }

    def complete(self, end):
        """Return whether this end received everything, and its connection ended without an error."""
        return (
            end is not None
            and end['received'] == end['sent'] == self.streams[end['port'] - FIRST_PORT]['bytes']
            and end['eof']
            and not end['error']
        )

    def unexplained(self):
        """Count the sides that never reported the end of their connection, or reported success without all bytes."""
        count = len(self.streams) - len(self.ends[CONNECTOR])
        for port, end in self.ends[CONNECTOR].items():
            other = self.ends[LISTENER].get(port)
            count += not (end['error'] or self.complete(end))
            if other is not None or end['connected']:
                count += not (other and (other['error'] or self.complete(other)))
        return count

    def differing(self):
        """Count the streams (two for each connection) whose received bytes differ from the bytes sent."""
        differing = 0
        for host, other_role in (CONNECTOR, 'listen'), (LISTENER, 'connect'):
            for port, end in self.ends[host].items():
                other = self.ends[1 - host].get(port)
                if other is not None and other['sent'] == end['received']:
                    expected = other['sent_sha']
                else:
                    expected = Pattern(other_role, port).digest(end['received'])
                differing += end['received_sha'] != expected
        return differing
