"""Transfers over links that lose, delay, exchange and double packets, that go away for a while, and that go for good.

Owns M11, a figure for each fault. The rule: on both sides of a link is a reactor that sends and receives at once, on
several connections; and the fault is proven by counting what it did, or the figure has measured nothing.
"""

from perf.common.server import Failed
from perf.faults.case import Case, Goal, Run

from .exchange import LISTENER, Exchange, Step, stream
from .namespaces import missing, network
from .transfer import FIRST_PORT

MB, GB = 10**6, 10**9
IDLE = 150  # seconds without a byte that a connection lives through: more than TCP's longest pause, 120
LATE = 2  # seconds by which a time limit may be told late, on a busy machine; by design it is 1
DEADLINE = 1800  # seconds for all of it
SEED = 11

SAME = Goal('SHA-256 equal for every stream', lambda m: m['streams_that_differ'] == 0)
TOLD = Goal(
    'every connection ends in success or a stated error, none later than its deadline',
    lambda m: m['ends_untold'] == m['hung'] == 0 and m['longest_stall_s'] <= IDLE + LATE,
)
COMPLETE = Goal('all of them get all their bytes', lambda m: m['complete'] == m['connections'])

# Where a third of all packets is lost, half of all retransmissions are: the pauses, doubled each time, have no mean.
# And what a closed socket has not sent yet, its system gives up soon.
PATIENT = {'rto_max_ms': 1000, 'orphan_retries': 30, 'syn_retries': 30, 'synack_retries': 30}


class OverNetwork(Case):
    tag = 'faults'  # of `network`

    def missing(self):
        return missing()


class Transfer(OverNetwork):
    """So many bytes, half of them each way, over a link with a fault that is there from the start.

    size   bytes in full size
    count  connections at once
    loss   share of all packets that a rule loses
    tcp    of `Network.set_tcp`
    tls    whether it goes over TLS
    proof  the goal that tells whether the fault was there
    link   of `network`
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
        self.goals = SAME, TOLD, COMPLETE, *([proof] if proof else [])

    def measure(self, run):
        size = run.count(self.size) // (2 * self.count)
        with network(self.tag, **self.link_of(run)) as net:
            net.set_tcp(**self.tcp)
            if self.loss:
                net.lose(self.loss)
            streams = [stream(size, idle=IDLE)] * self.count
            steps = self.steps(net, run)
            exchange = Exchange(net, streams, deadline=DEADLINE, tls=self.tls, steps=steps, progress=run.progress)
            exchange.run()
            if any(step.done is None for step in steps):
                raise Failed('all was sent before the fault was there')
            return {**exchange.judge(), **net.counts()}

    def link_of(self, run):
        return self.link

    def steps(self, net, run):
        return []


def lost(share):
    """That rules, which choose at random, have lost so many of the packets: a tenth, and five standard errors off."""

    def check(m):
        expected = share * m['packets']
        return abs(m['dropped'] - expected) < 0.1 * expected + 5 * expected**0.5

    return Goal(f'{share:.0%} of the packets were lost', check)


def about(share, what, text):
    """That the relay has done this to about so many."""
    return Goal(text, lambda m: 0.8 * share < m[what] / m['packets'] < 1.2 * share)


class Interrupted(Transfer):
    """A transfer over a link that is not fast, so that there is time for it to go away on the way.

    down, up  called with the `Network`: what goes, and how it comes back
    lasts     seconds between the two
    """

    pace = 8  # seconds of a transfer that is left alone

    def __init__(self, name, title, seconds, *, down, up, lasts, proof=None):
        super().__init__(name, title, seconds, proof=proof)
        self.down = down
        self.up = up
        self.lasts = lasts

    def measure(self, run):
        return super().measure(Run(progress=run.progress))  # a pause has one length, and there is to be something left

    def link_of(self, run):
        return {'rate': f'{run.count(self.size) // 2 * 8 // self.pace}bit'}

    def steps(self, net, run):
        return [
            Step(lambda: self.down(net), share=0.25),
            Step(lambda: self.up(net), after=self.lasts),
        ]


def paused(seconds):
    return Goal(f'nothing came for {seconds} s', lambda m: m['longest_stall_s'] >= seconds)


REJECTED = '-p tcp -j REJECT --reject-with tcp-reset'
DROPPED = '-j DROP'


class Reset(Interrupted):
    """Both ends are told, the side of the filter when it lets it hear the other again."""

    told = Goal(
        'both ends of each are told of the reset',
        lambda m: (
            m['errors'].keys() <= {'ConnectionResetError', 'BrokenPipeError'}
            and sum(m['errors'].values()) == 2 * m['connections']
        ),
    )

    def __init__(self):
        super().__init__(
            'M11-reset',
            'connections that a filter resets on the way, and for 3 s one side alone can hear of it',
            20,
            down=lambda net: net.treat(LISTENER, REJECTED),
            up=lambda net: net.clear(LISTENER),
            lasts=3,
        )
        self.goals = SAME, TOLD, self.told


class NoWayIn(OverNetwork):
    name, seconds = 'M11-connect', 15
    title = 'connecting through a filter that refuses, and through one that says nothing, with a limit of 5 s'
    count, limit = 100, 5
    goals = (
        Goal(
            'those refused are told ConnectionRefusedError',
            lambda m: m['refused'] == {'ConnectionRefusedError': m['asked']},
        ),
        Goal('at once', lambda m: m['refused_after_s'] < LATE),
        Goal('the others ConnectTimeout', lambda m: m['unanswered'] == {'ConnectTimeout': m['asked']}),
        Goal('in time', lambda m: m['limit_s'] <= m['unanswered_after_s'] < m['limit_s'] + LATE),
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
        exchange = Exchange(net, [stream(1000, idle=IDLE)] * self.count, deadline=IDLE, connect_timeout=self.limit)
        exchange.run()
        net.clear(LISTENER)
        found = exchange.judge()
        return found['errors'], found['seconds']


ENDLESS = 10**12  # bytes that nobody can have sent
LIMITS = {'write': 'WriteTimeout', 'read': 'ReadTimeout', 'idle': 'IdleTimeout'}
# Where its own device is down, a host knows no way to the other.
GONE = {'TimeoutError', 'OSError'}


class DeadPeer(OverNetwork):
    """Connections of which each has one limit, on a link that goes and does not come back.

    limit      seconds of the three time limits
    keepalive  what the silent ones have instead, as `connect_tcp` has it; over about when the limits are
    unlimited  whether to have some with neither, for TCP to give up: half a minute, as it is set here
    """

    name, seconds = 'M11-dead', 60
    title = 'a link that goes for good, under connections with a limit each'
    each = 4  # connections of a kind
    before = 2  # seconds until the link goes

    def __init__(self, limit=5, keepalive=(2, 1, 3), unlimited=True):
        self.keepalive = keepalive
        self.kinds = {kind: stream(ENDLESS, hold=True, **{kind: limit}) for kind in LIMITS}
        self.kinds['silent'] = stream(0, hold=True)
        if unlimited:
            self.kinds['unlimited'] = stream(ENDLESS, hold=True)
        self.goals = (
            SAME,
            Goal('every end is told', lambda m: m['ends_untold'] == m['hung'] == 0),
            Goal('by the error that its limit has', lambda m: m['other_errors'] == {}),
            Goal(
                f'at most {LATE} s after its limit of {limit} s',
                lambda m: max(m[f'{kind}_after_s'] for kind in (*LIMITS, 'silent')) < limit + LATE,
            ),
        )

    def measure(self, run):
        streams = [one for one in self.kinds.values() for _ in range(self.each)]
        with network(self.tag, packets=False) as net:
            net.set_tcp(retries2=6)
            down = Step(lambda: net.set_link(LISTENER, 'down'), after=self.before)
            exchange = Exchange(
                net, streams, deadline=IDLE, keepalive=self.keepalive, steps=[down], progress=run.progress
            )
            exchange.run()
        found = exchange.judge()
        for name in 'complete', 'MB/s', 'longest_stall_s':
            del found[name]
        return {**found, **self.told(exchange.ends, down.done)}

    def told(self, sides, since):
        """By kind, when the last one was told; and the errors that are not those of their kind."""
        after, others = {}, {}
        for end in (end for side in sides for end in side.values()):
            kind = list(self.kinds)[(end['port'] - FIRST_PORT) // self.each]
            after[kind] = max(after.get(kind, 0.0), end['at'] - since)
            if end['error'] not in ({LIMITS[kind]} if kind in LIMITS else GONE):
                others.setdefault(kind, f'{end["error"]}: {end["words"]}')
        return {**{f'{kind}_after_s': seconds for kind, seconds in after.items()}, 'other_errors': others}


MIXED = {
    'relay': {'seed': SEED, 'delay': 0.02, 'loss': 0.01, 'reorder': 0.1, 'late': 0.01, 'duplicate': 0.02},
    'proof': Goal('all of that happened', lambda m: min(m['lost'], m['late'], m['doubled']) > 0),
}
NETWORK = [
    Transfer('M11-clean', '20 GB between two hosts, nothing is lost', 60, size=20 * GB, count=32, packets=False),
    Transfer(
        'M11-loss1', '20 GB, 1 % of the packets lost each way', 400, size=20 * GB, count=32, loss=0.01, proof=lost(0.01)
    ),
    Transfer(
        'M11-loss10', '2 GB, 10 % of the packets lost each way', 150, size=2 * GB, count=64, loss=0.1, proof=lost(0.1)
    ),
    Transfer(
        'M11-loss30',
        '200 MB, 30 % of the packets lost each way, TCP set to be patient',
        240,
        count=256,
        loss=0.3,
        tcp=PATIENT,
        proof=lost(0.3),
    ),
    Transfer(
        'M11-delay',
        '200 MB, each packet 200 ms under way',
        40,
        count=32,
        relay={'seed': SEED, 'delay': 0.2},
        proof=Goal('no answer before 400 ms', lambda m: m['longest_stall_s'] >= 0.4),
    ),
    Transfer(
        'M11-reorder',
        '200 MB, a quarter of the packets up to 10 ms late, behind others',
        30,
        relay={'seed': SEED, 'reorder': 0.25, 'late': 0.01},
        proof=about(0.25, 'late', 'a quarter was late'),
    ),
    Transfer(
        'M11-double',
        '200 MB, 10 % of the packets twice',
        30,
        relay={'seed': SEED, 'duplicate': 0.1},
        proof=about(0.1, 'doubled', 'a tenth was doubled'),
    ),
    Transfer('M11-mixed', '200 MB, packets 20 ms under way, 1 % lost, 10 % late, 2 % doubled', 60, count=32, **MIXED),
    Transfer('M11-tls', '200 MB over TLS on such a link', 60, count=256, tls=True, **MIXED),
    Transfer(
        'M11-mtu',
        '200 MB in packets of at most 576 bytes',
        30,
        mtu=576,
        proof=Goal('no packet was larger', lambda m: m['GB'] * GB / m['packets'] < 576),
    ),
    Interrupted(
        'M11-down',
        '200 MB, the link down for 30 s on the way',
        80,
        down=lambda net: net.set_link(LISTENER, 'down'),
        up=lambda net: net.set_link(LISTENER, 'up'),
        lasts=30,
        proof=paused(30),
    ),
    Interrupted(
        'M11-drop',
        '200 MB, all packets dropped by a filter for 10 s on the way',
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
