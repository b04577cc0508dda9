"""Joining a multicast group: the structs that are passed to the kernel, and invalid groups and interfaces."""

from __future__ import annotations

import socket
import sys
from socket import AF_INET, AF_INET6, inet_pton

import pytest

from reactor.kernel import Kernel
from reactor.kernel.platforms import HAS_IP_MREQN
from reactor.net.multicast import membership

V4, V6 = '239.1.2.3', 'ff02::1:3'


def number(value: int) -> bytes:
    return value.to_bytes(4, sys.byteorder)


def test_without_an_interface_the_kernel_chooses():
    level, join, leave, value = membership(Kernel(), V4, None)
    assert (level, join, leave) == (socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.IP_DROP_MEMBERSHIP)
    assert value == inet_pton(AF_INET, V4) + bytes(8 if HAS_IP_MREQN else 4)
    level, join, leave, value = membership(Kernel(), V6, None)
    assert (level, join, leave) == (socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, socket.IPV6_LEAVE_GROUP)
    assert value == inet_pton(AF_INET6, V6) + bytes(4)


def test_an_interface_is_given_by_address_or_by_number():
    assert membership(Kernel(), V4, '127.0.0.1')[3] == inet_pton(AF_INET, V4) + b'\x7f\0\0\1'
    by_number = bytes(4) + number(7) if HAS_IP_MREQN else b'\0\0\0\7'
    assert membership(Kernel(), V4, 7)[3] == inet_pton(AF_INET, V4) + by_number
    assert membership(Kernel(), V6, 7)[3] == inet_pton(AF_INET6, V6) + number(7)


def test_an_interface_is_given_by_name():
    for index, name in getattr(socket, 'if_nameindex', list)():
        for group in V4, V6:
            assert membership(Kernel(), group, name) == membership(Kernel(), group, index)


@pytest.mark.parametrize('group', ['224.0.0.0', '239.255.255.255', 'ff00::', 'ffff::1'])
def test_the_first_and_the_last_group_are_accepted(group):
    membership(Kernel(), group, None)


@pytest.mark.parametrize('group', ['223.255.255.255', '240.0.0.0', 'fe80::1', '::1', 'localhost', '', V4 + '\0', 'a:b'])
def test_an_address_that_is_not_a_group_is_refused(group):
    with pytest.raises(ValueError, match='multicast address'):
        membership(Kernel(), group, None)


def test_an_index_of_an_interface_has_31_bits():
    assert membership(Kernel(), V6, 0x7FFFFFFF)[3] == inet_pton(AF_INET6, V6) + number(0x7FFFFFFF)


@pytest.mark.parametrize(
    ('interface', 'error'),
    [('nosuch0', OSError), (-1, ValueError), (1 << 31, ValueError), (1.5, TypeError), (True, TypeError)],
)
def test_an_invalid_interface_is_refused(interface, error):
    for group in V4, V6:
        with pytest.raises(error, match=r'interface'):
            membership(Kernel(), group, interface)


def test_an_ipv6_interface_cannot_be_given_by_ipv4_address():
    with pytest.raises(OSError, match='interface'):
        membership(Kernel(), V6, '127.0.0.1')
