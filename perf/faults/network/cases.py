"""Transfers over links that lose, delay, reorder or duplicate packets, and over links that fail (M11).

On each side of the link, a reactor sends and receives at the same time, on several connections. Each case counts the
packets that its fault affected, as proof that the fault did happen.
"""

from perf.common.server import Failed
from perf.faults.case import Case, Goal, Run

from .exchange import LISTENER, Exchange, Step, stream
from .namespaces import missing, network
from .transfer import FIRST_PORT

MB, GB = 10**6, 10**9
IDLE = 150  # idle timeout in seconds: more than 120, TCP's longest pause between retransmissions
LATE = 2  # seconds by which a connection may outlive its time limit on a busy machine; by design at most 1
TIMEOUT = 1800  # seconds for a whole transfer
SEED = 11

SAME = Goal('the SHA-256 of every stream is right', lambda m: m['streams_that_differ'] == 0)
EXPLAINED = Goal(
    'every connection ends with success or with an error, and none after its time limit',
    lambda m: m['unexplained_ends'] == m['hung'] == 0 and m['longest_stall_s'] <= IDLE + LATE,
)
COMPLETE = Goal('every connection receives all its bytes', lambda m: m['complete'] == m['connections'])

# If 30 % of the packets are lost in each direction, half of all retransmissions fail, and pauses that double each time
# have no finite mean. Besides, the kernel soon abandons data that a closed socket has not sent yet.
PATIENT = {'rto_max_ms': 1000, 'orphan_retries': 30, 'syn_retries': 30, 'synack_retries': 30}


class OverNetwork(Case):
    """A case that needs a faulty network."""

    tag = 'faults'  # argument of `network`

    def missing(self):
        return missing()


class Transfer(OverNetwork):
    """A transfer, half of the bytes in each direction, over a link that has its fault from the start.

    size   bytes to transfer at full size
    count  connections that are open at once
    loss   share of the packets that a rule drops, 0 to 1
    tcp    arguments of `Network.set_tcp`
    tls    whether to use TLS
    proof  a goal that is met only if the fault did happen
    link   arguments of `network`
    """

    def __init__(
        self, name, title, seconds, *, size=200 * MB, count=16, loss=0.0, tcp=None, tls=False, proof=None, **link
    ):
        self.name = name
        self.title = title
        self.seconds = seconds
        self.size = size
        self.count = count
        self.loss = loss
        self.tcp = tcp or {}
        self.tls = tls
        self.link = link
        self.goals = SAME, EXPLAINED, COMPLETE, *([proof] if proof else [])

    def measure(self, run):
        size = run.count(self.size) // (2 * self.count)
        with network(self.tag, **self.link_of(run)) as net:
            net.set_tcp(**self.tcp)
            if self.loss:
                net.lose(self.loss)
            streams = [stream(size, idle=IDLE)] * self.count
            steps = self.steps(net, run)
            exchange = Exchange(net, streams, timeout=TIMEOUT, tls=self.tls, steps=steps, progress=run.progress)
            exchange.run()
            if any(step.done is None for step in steps):
                raise Failed('everything was sent before the fault began')
            return {**exchange.judge(), **net.counts()}

    def link_of(self, run):
        return self.link

    def steps(self, net, run):
        return []


def lost(share):
    """Return a goal: random rules dropped this share of the packets, within a tenth and five standard errors."""

    def check(m):
        expected = share * m['packets']
        return abs(m['dropped'] - expected) < 0.1 * expected + 5 * expected**0.5

    return Goal(f'{share:.0%} of the packets were lost', check)


def about(share, what, text):
    """Return a goal: the relay's count `what` is about this share of the packets."""
    return Goal(text, lambda m: 0.8 * share < m[what] / m['packets'] < 1.2 * share)


class Interrupted(Transfer):
    """A transfer over a slow link, so that the fault begins before everything is sent.

    down, up  functions that begin and end the fault; called with the `Network`
    lasts     duration of the fault in seconds
    """

    pace = 8  # seconds that the transfer takes without the fault

    def __init__(self, name, title, seconds, *, down, up, lasts, proof=None):
        super().__init__(name, title, seconds, proof=proof)
        self.down = down
        self.up = up
        self.lasts = lasts

    def measure(self, run):
        return super().measure(Run(progress=run.progress))  # always at full size: the fault lasts a fixed time

    def link_of(self, run):
        return {'rate': f'{run.count(self.size) // 2 * 8 // self.pace}bit'}

    def steps(self, net, run):
        return [
            Step(lambda: self.down(net), share=0.25),
            Step(lambda: self.up(net), after=self.lasts),
        ]


def paused(seconds):
    """Return a goal: no data arrived for this number of seconds."""
    return Goal(f'no data arrived for {seconds} s', lambda m: m['longest_stall_s'] >= seconds)


REJECTED = '-p tcp -j REJECT --reject-with tcp-reset'
DROPPED = '-j DROP'


class Reset(Interrupted):
    """A filter at the listener resets the connections; the listener gets the resets when the filter is removed."""

    reported = Goal(
        'the reset is reported as an error at both ends of each connection',
        lambda m: (
            m['errors'].keys() <= {'ConnectionResetError', 'BrokenPipeError'}
            and sum(m['errors'].values()) == 2 * m['connections']
        ),
    )

    def __init__(self):
        super().__init__(
            'M11-reset',
            'a filter resets the connections during the transfer; for 3 s, only one side is notified',
            20,
            down=lambda net: net.treat(LISTENER, REJECTED),
            up=lambda net: net.clear(LISTENER),
            lasts=3,
        )
        self.goals = SAME, EXPLAINED, self.reported


class NoWayIn(OverNetwork):
    name, seconds = 'M11-connect', 15
    title = 'connects through a filter that refuses and a filter that drops, with a timeout of 5 s'
    count, limit = 100, 5
    goals = (
        Goal(
            'refused connects fail with ConnectionRefusedError',
            lambda m: m['refused'] == {'ConnectionRefusedError': m['asked']},
        ),
        Goal('at once', lambda m: m['refused_after_s'] < LATE),
        Goal('dropped connects fail with ConnectTimeout', lambda m: m['unanswered'] == {'ConnectTimeout': m['asked']}),
        Goal(
            'dropped connects fail at their timeout',
            lambda m: m['limit_s'] <= m['unanswered_after_s'] < m['limit_s'] + LATE,
        ),
    )

    def measure(self, run):
        with network(self.tag) as net:
            refused, refused_after = self.connect(net, REJECTED)
            unanswered, unanswered_after = self.connect(net, DROPPED)
        return {
            'asked': self.count,
            'refused': refused,
            'refused_after_s': refused_after,
            'unanswered': unanswered,
            'unanswered_after_s': unanswered_after,
            'limit_s': self.limit,
        }

    def connect(self, net, filtered):
        net.treat(LISTENER, filtered)
        exchange = Exchange(net, [stream(1000, idle=IDLE)] * self.count, timeout=IDLE, connect_timeout=self.limit)
        exchange.run()
        net.clear(LISTENER)
        found = exchange.judge()
        return found['errors'], found['seconds']


ENDLESS = 10**12  # bytes: more than can be sent during the case
LIMITS = {'write': 'WriteTimeout', 'read': 'ReadTimeout', 'idle': 'IdleTimeout'}
# The errors of connections that have no limit of the reactor. A host whose own device is down has no route to the other
# host, which is a plain OSError.
GONE = {'TimeoutError', 'OSError'}


class DeadPeer(OverNetwork):
    """Connections on a link that fails permanently; each connection has a single time limit.

    limit      read, write and idle timeout in seconds
    keepalive  the option of `connect_tcp` for the silent connections, with about the same limit
    unlimited  whether to also open connections without a limit; TCP, as configured here, ends them after half a minute
    """

    name, seconds = 'M11-dead', 60
    title = 'a link fails permanently; each connection has a single time limit'
    each = 4  # connections with each kind of limit
    before = 2  # seconds before the link fails

    def __init__(self, limit=5, keepalive=(2, 1, 3), unlimited=True):
        self.keepalive = keepalive
        self.kinds = {kind: stream(ENDLESS, hold=True, **{kind: limit}) for kind in LIMITS}
        self.kinds['silent'] = stream(0, hold=True)
        if unlimited:
            self.kinds['unlimited'] = stream(ENDLESS, hold=True)
        self.goals = (
            SAME,
            Goal('every connection ends with an error', lambda m: m['unexplained_ends'] == m['hung'] == 0),
            Goal('the error is that of its time limit', lambda m: m['other_errors'] == {}),
            Goal(
                f'every connection ends at most {LATE} s after its limit of {limit} s',
                lambda m: max(m[f'{kind}_after_s'] for kind in (*LIMITS, 'silent')) < limit + LATE,
            ),
        )

    def measure(self, run):
        streams = [one for one in self.kinds.values() for _ in range(self.each)]
        with network(self.tag, packets=False) as net:
            net.set_tcp(retries2=6)
            down = Step(lambda: net.set_link(LISTENER, 'down'), after=self.before)
            exchange = Exchange(
                net, streams, timeout=IDLE, keepalive=self.keepalive, steps=[down], progress=run.progress
            )
            exchange.run()
        found = exchange.judge()
        for name in 'complete', 'MB/s', 'longest_stall_s':
            del found[name]
        return {**found, **self.ends(exchange.ends, down.done)}

    def ends(self, sides, since):
        """Return, for each kind of limit, when the last connection ended, and an unexpected error if there was one."""
        after, others = {}, {}
        for end in (end for side in sides for end in side.values()):
            kind = list(self.kinds)[(end['port'] - FIRST_PORT) // self.each]
            after[kind] = max(after.get(kind, 0.0), end['at'] - since)
            if end['error'] not in ({LIMITS[kind]} if kind in LIMITS else GONE):
                others.setdefault(kind, f'{end["error"]}: {end["message"]}')
        return {**{f'{kind}_after_s': seconds for kind, seconds in after.items()}, 'other_errors': others}


MIXED = {
    'relay': {'seed': SEED, 'delay': 0.02, 'loss': 0.01, 'reorder': 0.1, 'late': 0.01, 'duplicate': 0.02},
    'proof': Goal('packets were lost, delayed and doubled', lambda m: min(m['lost'], m['late'], m['doubled']) > 0),
}
NETWORK = [
    Transfer('M11-clean', '20 GB between two hosts, without faults', 60, size=20 * GB, count=32, packets=False),
    Transfer(
        'M11-loss1', '20 GB, 1 % of the packets lost each way', 400, size=20 * GB, count=32, loss=0.01, proof=lost(0.01)
    ),
    Transfer(
        'M11-loss10', '2 GB, 10 % of the packets lost each way', 150, size=2 * GB, count=64, loss=0.1, proof=lost(0.1)
    ),
    Transfer(
        'M11-loss30',
        '200 MB, 30 % of the packets lost each way, with longer TCP retries',
        240,
        count=256,
        loss=0.3,
        tcp=PATIENT,
        proof=lost(0.3),
    ),
    Transfer(
        'M11-delay',
        '200 MB, each packet delayed by 200 ms',
        40,
        count=32,
        relay={'seed': SEED, 'delay': 0.2},
        proof=Goal('no reply before 400 ms', lambda m: m['longest_stall_s'] >= 0.4),
    ),
    Transfer(
        'M11-reorder',
        '200 MB, a quarter of the packets up to 10 ms late, so that others overtake them',
        30,
        relay={'seed': SEED, 'reorder': 0.25, 'late': 0.01},
        proof=about(0.25, 'late', 'a quarter of the packets arrived late'),
    ),
    Transfer(
        'M11-double',
        '200 MB, 10 % of the packets arrive twice',
        30,
        relay={'seed': SEED, 'duplicate': 0.1},
        proof=about(0.1, 'doubled', 'a tenth of the packets arrived twice'),
    ),
    Transfer('M11-mixed', '200 MB, packets delayed by 20 ms, 1 % lost, 10 % late, 2 % doubled', 60, count=32, **MIXED),
    Transfer('M11-tls', '200 MB over TLS, with the faults of M11-mixed', 60, count=256, tls=True, **MIXED),
    Transfer(
        'M11-mtu',
        '200 MB in packets of at most 576 bytes',
        30,
        mtu=576,
        proof=Goal('no packet was larger than 576 bytes', lambda m: m['GB'] * GB / m['packets'] < 576),
    ),
    Interrupted(
        'M11-down',
        '200 MB, the link is down for 30 s during the transfer',
        80,
        down=lambda net: net.set_link(LISTENER, 'down'),
        up=lambda net: net.set_link(LISTENER, 'up'),
        lasts=30,
        proof=paused(30),
    ),
    Interrupted(
        'M11-drop',
        '200 MB, a filter drops all packets for 10 s during the transfer',
        40,
        down=lambda net: net.treat(LISTENER, DROPPED),
        up=lambda net: net.clear(LISTENER),
        lasts=10,
        proof=paused(10),
    ),
    Reset(),
    NoWayIn(),
    DeadPeer(),
]
