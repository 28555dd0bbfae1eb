"""Interfaces of a real namespace as they are read."""

from __future__ import annotations

import os
from ipaddress import ip_interface

import pytest

from linux.interfaces import Interfaces
from linux.netns import inside, open_netns
from tests.netns.linux.conftest import Namespace

pytestmark = pytest.mark.privileged


def test_those_that_are_there_are_read_with_their_addresses(netns: Namespace) -> None:
    netns.ip("link add fab0 type veth peer name fab1")
    netns.ip("link set fab0 up mtu 1400")
    netns.ip("addr add 172.30.0.11/24 dev fab0")
    netns.ip("addr add 172.30.1.1 peer 172.30.1.2/32 dev fab0")
    netns.ip("addr add fd00:172:30::11/64 dev fab0 nodad")
    descriptor = open_netns(netns.path)
    try:
        with inside(descriptor):
            kernel = Interfaces()
    finally:
        os.close(descriptor)
    try:
        first, second = kernel.named(("fab1", "absent", "fab0"))
        assert (first.name, first.up, first.mtu, first.addresses) == ("fab1", False, 1500, ())
        assert (second.name, second.up, second.mtu) == ("fab0", True, 1400)
        assert {one for one in second.addresses if not one.is_link_local} == {
            ip_interface("172.30.0.11/24"),
            ip_interface("172.30.1.1/32"),
            ip_interface("fd00:172:30::11/64"),
        }
        assert first.index != second.index
        assert kernel.named(()) == ()
    finally:
        kernel.close()
