"""Two simulated hosts: network namespaces, with a link between them that can be made faulty.

All devices, rules and processes live inside the two namespaces, so removing the namespaces removes everything. They are
removed however a measurement ends; if it is killed, they are removed before the next measurement begins.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from perf.common.server import Failed
from perf.faults.child import Child

NEEDS = {'ip': 'iproute2', 'tc': 'iproute2', 'iptables-legacy': 'iptables'}
HOSTS = ('10.99.0.1', '10.99.0.2')
DEVICE = 'link0'
# A relay that has to wait for a processor would delay packets more than configured.
URGENT = 'nice', '-n', '-10'
COMMAND_TIME = 20  # seconds within which a command must end
QUEUE = 2000  # length of a device's queue in packets
LOSE = 'iptables-legacy -A INPUT -m statistic --mode random --probability {:g} -j DROP'


def missing():
    """Return why this network cannot be set up here, or None."""
    if sys.platform != 'linux':
        return f'network namespaces need Linux; this is {sys.platform}'
    absent = sorted({package for command, package in NEEDS.items() if shutil.which(command) is None})
    if absent:
        return f'commands are not installed: apt-get install {" ".join(absent)}'
    if os.geteuid() != 0:
        return 'only root can create namespaces, devices and rules: run this as root'
    with lock('probe', wait=True):
        try:
            remove('reactor-probe')
            call('ip netns add reactor-probe')
            call('ip netns exec reactor-probe ' + LOSE.format(0.5))
            call('ip -n reactor-probe tuntap add dev probe0 mode tun')
        except Failed as exc:
            return f'this kernel lacks a feature that is needed: {exc}'
        finally:
            remove('reactor-probe')
    return None


def call(line, text=None):
    """Run a command with `text` on its standard input; return its output. Raise `Failed` if it fails."""
    done = subprocess.run(line.split(), input=text, capture_output=True, text=True, timeout=COMMAND_TIME, check=False)
    if done.returncode:
        raise Failed(f'`{line}`: {(done.stderr or done.stdout).strip()}')
    return done.stdout


class Network:
    """A pair of hosts, numbered 0 and 1, with a link between them. `network` creates it."""

    def __init__(self, tag):
        self.names = tuple(f'reactor-{tag}-{host}' for host in (0, 1))
        self.relay = None

    def inside(self, host):
        """Return the prefix that runs a command on a host."""
        return ['ip', 'netns', 'exec', self.names[host]]

    def on(self, host, line, text=None):
        """Run a command on a host, like `call`."""
        return call(f'{" ".join(self.inside(host))} {line}', text)

    def add_veth(self):
        call(f'ip link add {DEVICE} netns {self.names[0]} type veth peer name {DEVICE} netns {self.names[1]}')

    def add_relay(self, stack, faults):
        prefix = [*self.inside(0), *URGENT]
        self.relay = stack.enter_context(Child('network.relay:carry', prefix=prefix, **faults))
        for host, device in enumerate(self.relay.receive()):
            if host:
                call(f'ip -n {self.names[0]} link set {device} netns {self.names[host]}')
            call(f'ip -n {self.names[host]} link set {device} name {DEVICE}')

    def bring_up(self, mtu, packets, rate):
        for host, name in enumerate(self.names):
            device = f'ip -n {name} link set {DEVICE}'
            call(f'{device} mtu {mtu} txqueuelen {QUEUE}')
            if packets:
                call(f'{device} gso_max_segs 1 gso_max_size {mtu}')
            if rate:
                call(f'tc -n {name} qdisc add dev {DEVICE} root tbf rate {rate} burst 256kb latency 50ms')
            call(f'ip -n {name} addr add {HOSTS[host]}/24 dev {DEVICE}')
            self.set_link(host, 'up')

    def set_link(self, host, state):
        """Set the link of a host to 'up' or 'down'."""
        call(f'ip -n {self.names[host]} link set {DEVICE} {state}')

    def set_tcp(self, **settings):
        """Set `net.ipv4.tcp_...` on both hosts. Settings that this kernel does not have are skipped."""
        for name, value in settings.items():
            path = Path(f'/proc/sys/net/ipv4/tcp_{name}')
            if path.exists():
                for host in (0, 1):
                    self.on(host, f'tee {path}', str(value))

    def lose(self, share):
        """Drop this share of all packets, in both directions."""
        for host in (0, 1):
            self.on(host, LOSE.format(share))

    def treat(self, host, what):
        """Add a rule for the packets that a host receives, like `-j DROP`; `clear` removes it."""
        self.on(host, f'iptables-legacy -A INPUT {what}')

    def clear(self, host):
        self.on(host, 'iptables-legacy -F INPUT')

    def counts(self):
        """Return how many packets arrived and how many were dropped, or the counts of the relay."""
        if self.relay is not None:
            return self.relay.ask('counts')
        packets = dropped = 0
        for host, name in enumerate(self.names):
            device = json.loads(call(f'ip -n {name} -j -s link show dev {DEVICE}'))[0]
            packets += device['stats64']['rx']['packets']
            rules = self.on(host, 'iptables-legacy -L INPUT -v -x -n').splitlines()[2:]
            dropped += sum(int(rule.split()[0]) for rule in rules)
        return {'packets': packets, 'dropped': dropped}


@contextlib.contextmanager
def network(tag='faults', *, mtu=1500, packets=True, rate=None, relay=None):
    """Create a `Network`, and remove it at the end of the `with` block.

    tag      part of the namespaces' names: a second network with the same tag is refused
    mtu      largest size of a packet in bytes
    packets  True: no packet is larger than `mtu`. False: the kernel passes on pieces of 64 KiB, which is faster, but a
             lost piece is lost as a whole, unlike on a wire
    rate     speed of the link in the notation of `tc` ('100mbit'); None means unlimited
    relay    a dict of arguments for `relay.carry`, which then carries the packets; None: a plain link
    """
    made = Network(tag)
    with lock(tag), terminated_as_an_exception(), contextlib.ExitStack() as stack:
        for name in made.names:
            remove(name)
            stack.callback(remove, name)
            call(f'ip netns add {name}')
        if relay:
            made.add_relay(stack, relay)
        else:
            made.add_veth()
        made.bring_up(mtu, packets, rate)
        yield made


def remove(name):
    """Remove a namespace with its processes and devices, if it exists."""
    if name in (line.split()[0] for line in call('ip netns list').splitlines()):
        for pid in call(f'ip netns pids {name}').split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        call(f'ip netns del {name}')


@contextlib.contextmanager
def lock(tag, wait=False):
    """Hold the lock on this tag during the `with` block. The kernel releases the lock however its owner ends."""
    path = Path(f'/run/reactor-{tag}.lock')
    with path.open('w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise Failed(f'another run uses the network `{tag}` ({path}): wait until it has ended') from None
        yield


@contextlib.contextmanager
def terminated_as_an_exception():
    """Turn SIGTERM into `SystemExit`, so that the namespaces are removed."""

    def leave(signum, frame):
        raise SystemExit(128 + signum)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
