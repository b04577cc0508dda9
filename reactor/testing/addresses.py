"""The addresses of the simulated network: which of them exist, which are in use, and which sockets share a port.

A host is '10.0.0.1' or 'fd00::1' here, and never '::ffff:10.0.0.1'. `plain` and `address_for` convert the addresses of
sockets, because an IPv6 socket shows an IPv4 host as a mapped address.
"""

from __future__ import annotations

import errno
from collections import deque
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from socket import AF_INET, AF_INET6, IPPROTO_IPV6, IPV6_V6ONLY, SO_REUSEADDR, SO_REUSEPORT, SOCK_STREAM, SOL_SOCKET
from sys import byteorder
from typing import Any

from .agenda import Agenda
from .faults import fail
from .files import End, File, Listening

CHOSEN = 32768, 60999  # the ports that Linux chooses from: net.ipv4.ip_local_port_range
TIME_WAIT = 60_000_000_000  # ns for which Linux keeps the port of a connection that this side has closed first
EVERYWHERE = ('0.0.0.0', '::')
# All addresses of these networks belong to the simulated computer, and so do the addresses of `hosts`.
OURS = tuple(map(ip_network, ('127.0.0.0/8', '10.0.0.0/8', '::1/128', 'fd00::/8')))
MAPPED = '::ffff:'

Host = tuple[str, int]


class Binding:
    """An address that a socket has. The socket may change its file: it begins to listen, or connects."""

    def __init__(self, file: File, kind: int, family: int, place: tuple[Any, int]) -> None:
        self.file = file
        self.kind = kind
        self.family = family
        self.host: Any = place[0]
        self.port: int = place[1]
        self.fixed: bool = False  # `bind` has named the port: the socket keeps it when its connection ends
        self.accepted: bool = False
        self.unused_by: File | None = None  # the file for which it was bound: no connection of this file has used it
        self.options: Any = None  # those of the connection in TIME_WAIT, whose socket may still be open and get others
        self.until: int | None = None  # ns: the socket is closed, and the port is free from then on

    def covers(self, host: str) -> int:
        """Return how closely this address matches a host; 0: not at all."""
        if self.host == host:
            return 3
        if self.host == '0.0.0.0':
            return 2 if ':' not in host else 0
        if self.host != '::':
            return 0
        return 2 if ':' in host else not self.option(IPPROTO_IPV6, IPV6_V6ONLY)

    def option(self, level: int, option: int) -> bool:
        """Return whether an option of the socket is on."""
        return bool((self.file.options if self.options is None else self.options).get((level, option)))

    def is_over(self) -> bool:
        """Return whether this is the address of a connection that has ended, which no longer needs its port."""
        end = self.file
        kept = self.fixed and self.until is None
        if kept or not isinstance(end, End) or not end.connected or end is self.unused_by:
            return False
        return end.dead or (end.over and self.until is None and not end.ended_first)

    def overlaps(self, other: Binding) -> bool:
        """Return whether Linux finds that both addresses match one host. `self` is the address to be bound."""
        if self.host == '0.0.0.0' and other.family == AF_INET6 and not other.option(IPPROTO_IPV6, IPV6_V6ONLY):
            return True
        return bool(self.covers(other.host) or other.covers(self.host))


class Addresses(Agenda):
    """A kernel with addresses. The arguments are for `Agenda`."""

    hosts: dict[str, tuple[str, ...]]

    def __init__(self, *agenda: Any) -> None:
        super().__init__(*agenda)
        self._bindings: dict[tuple[int, int], list[Binding]] = {}
        # Accepted connections are kept apart, so that a client finds its listener as fast among many connections.
        self._accepted: dict[int, dict[Binding, None]] = {}
        self._waiting: deque[Binding] = deque()  # the bindings in TIME_WAIT, in the order in which it ends
        self._port = CHOSEN[0]

    def bind(self, file: File, family: int, kind: int, address: Any) -> None:
        """Give a socket an address; port 0: choose a port. Fails with EADDRINUSE."""
        host, port = plain(address)
        binding = Binding(file, kind, family, (host, port or self.choose_port(kind)))
        if port:
            self.check_free(binding)
        binding.fixed, binding.unused_by = bool(port), file
        if ':' in host and host != '::' and self.on_linux:
            file.options[IPPROTO_IPV6, IPV6_V6ONLY] = 1
        self.add(binding)
        file.binding, file.local = binding, address_for(family, binding.host, binding.port)
        file.named = None if host in EVERYWHERE else host

    def check_host(self, file: File, family: int, kind: int, address: Any) -> None:
        """Fail with EADDRNOTAVAIL unless a socket can be bound to the host of this address."""
        host, _ = plain(address)
        if not self.has_host(host, kind):
            fail(errno.EADDRNOTAVAIL)
        if family == AF_INET6 and ':' not in host and file.options.get((IPPROTO_IPV6, IPV6_V6ONLY)):
            fail(errno.EINVAL)

    def add(self, binding: Binding) -> None:
        """Record that an address is in use."""
        self._bindings.setdefault((binding.kind, binding.port), []).append(binding)

    def add_accepted(self, end: End) -> None:
        """Record the address of an accepted TCP connection."""
        end.binding = binding = Binding(end, SOCK_STREAM, end.family, plain(end.local))
        binding.accepted = True
        self._accepted.setdefault(binding.port, {})[binding] = None

    def unbind(self, binding: Binding) -> None:
        """Free the address of a socket whose last descriptor was closed: for TCP, it may stay in TIME_WAIT."""
        end = binding.file
        self._end_waiting()
        if (
            isinstance(end, End) and end.connected and not end.dead and end is not binding.unused_by
            and (end.ended_first or not end.ended_in)
        ):  # fmt: skip
            binding.until = self.time + TIME_WAIT
            binding.options = dict(end.options) if binding.options is None else binding.options
            self._waiting.append(binding)
        else:
            self._remove(binding)

    def release(self, file: File) -> None:
        """Take the port from a socket that no longer listens or is connected, unless `bind` has named the port."""
        binding = file.binding
        if binding is None:
            return
        if not binding.fixed:
            self.unbind(binding)
            file.binding = None
        elif isinstance(file, End):  # the socket keeps its port, but another socket cannot have it either
            rest = Binding(file, binding.kind, binding.family, (binding.host, binding.port))
            self.add(rest)
            self.unbind(rest)

    def bound_to(self, kind: int, port: int) -> list[Binding]:
        """Return the addresses in use that have this port, without those of accepted connections."""
        return self._bindings.get((kind, port), [])

    def using(self, port: int) -> list[Binding]:
        """Return the addresses of stream sockets that have this port."""
        return [*self.bound_to(SOCK_STREAM, port), *self._accepted.get(port, ())]

    def check_free(self, binding: Binding, listening: bool = False) -> None:
        """Fail with EADDRINUSE, or with EACCES on Windows, unless the address is free or can be shared."""
        self._end_waiting()
        streams = binding.kind == SOCK_STREAM
        for other in self.using(binding.port) if streams else self.bound_to(binding.kind, binding.port):
            if other is not binding and binding.overlaps(other) and not other.is_over():
                error = self._conflict(binding, other, listening)
                if error:
                    fail(error)

    def choose_port(self, kind: int) -> int:
        """Return a port that no socket uses."""
        for _ in range(CHOSEN[1] - CHOSEN[0]):
            self._port = self._port + 1 if self._port < CHOSEN[1] else CHOSEN[0]
            if (kind, self._port) not in self._bindings and self._port not in self._accepted:
                return self._port
        fail(errno.EADDRINUSE)

    def has_host(self, host: str, kind: int = SOCK_STREAM) -> bool:
        """Return whether a socket of this kind can be bound to a host. Datagram sockets can be bound to groups."""
        known, group = _of_this_computer(host)
        return known or (group and kind != SOCK_STREAM) or any(host in found for found in self.hosts.values())

    def source_of(self, host: str) -> str:
        """Return the host from which a socket sends to `host` unless it is bound to another one."""
        if self.has_host(host):
            return '127.0.0.1' if host.startswith('127.') else host
        return '10.0.0.1' if ':' not in host else 'fd00::1'

    def _conflict(self, binding: Binding, other: Binding, listening: bool) -> int:
        shared = binding.option(SOL_SOCKET, SO_REUSEADDR), other.option(SOL_SOCKET, SO_REUSEADDR)
        group = binding.option(SOL_SOCKET, SO_REUSEPORT) and other.option(SOL_SOCKET, SO_REUSEPORT)
        if self.kind == 'windows':  # SO_REUSEADDR lets several sockets share a port, as SO_REUSEPORT does elsewhere
            if isinstance(other.file, Listening) and other.option(SOL_SOCKET, self.exclusive_address) and shared[0]:
                return errno.EACCES
            return 0 if shared[0] else errno.EADDRINUSE
        if not self.on_linux:
            return 0 if group or not isinstance(other.file, Listening) else errno.EADDRINUSE
        return 0 if group or (all(shared) and not isinstance(other.file, Listening)) else errno.EADDRINUSE

    def _end_waiting(self) -> None:
        while self._waiting and (self._waiting[0].until or 0) <= self.time:
            self._remove(self._waiting.popleft())

    def _remove(self, binding: Binding) -> None:
        if binding.accepted:
            del self._accepted[binding.port][binding]
            if not self._accepted[binding.port]:
                del self._accepted[binding.port]
            return
        found = self._bindings[binding.kind, binding.port]
        found.remove(binding)
        if not found:
            del self._bindings[binding.kind, binding.port]


def plain(address: Any) -> Host:
    """Return the host and port of an address, with a mapped host as IPv4. A port must fit into 16 bits."""
    host, port = address[:2]
    if not 0 <= port < 1 << 16:
        raise OverflowError('port must be 0-65535.')
    return _plain_host(host), port


def sockaddr(family: int, address: Any) -> bytes:
    """Return the address of a socket as Linux does: as struct sockaddr_in or sockaddr_in6."""
    start: bytes = family.to_bytes(2, byteorder) + address[1].to_bytes(2, 'big')
    packed: bytes = ip_address(address[0]).packed
    if family == AF_INET:
        return start + packed + bytes(8)
    scope: bytes = address[3].to_bytes(4, byteorder)
    return start + bytes(4) + packed + scope


def address_for(family: int, host: str, port: int) -> Any:
    """Return an address as sockets of this family show it."""
    if family == AF_INET:
        return host, port
    return (host if ':' in host else MAPPED + host), port, 0, 0


def reachable(host: str) -> str:
    """Return the host that a socket reaches when it sends to `host`: the wildcard address means this computer."""
    return {'0.0.0.0': '127.0.0.1', '::': '::1'}.get(host, host)


def is_group(host: str) -> bool:
    """Return whether datagrams to a host go to several sockets: it is a multicast or broadcast address."""
    return _of_this_computer(host)[1]


@lru_cache(1000)
def _plain_host(host: str) -> str:
    try:
        found = ip_address(host.partition('%')[0])
    except ValueError:
        return host
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return str(mapped or found)


@lru_cache(1000)
def _of_this_computer(host: str) -> tuple[bool, bool]:
    """Return whether a host is an address of this computer, and whether it is the address of a group."""
    try:
        found: IPv4Address | IPv6Address = ip_address(host)
    except ValueError:
        return False, False
    everyone = host == '255.255.255.255' or host == '127.255.255.255'
    return host in EVERYWHERE or any(found in each for each in OURS), found.is_multicast or everyone
