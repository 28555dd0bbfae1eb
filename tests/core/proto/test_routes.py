"""What nodes tell each other of routes is read by the release before, and what that told by this one."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import msgspec

from proto import codec
from proto.net import Address, Network
from proto.routes import NodeRoutes


class WithoutMtu(msgspec.Struct, frozen=True):
    """As it was before a node told its MTU."""

    node: str
    underlay: tuple[Address, ...]
    prefixes: tuple[Network, ...] = ()
    models: tuple[str, ...] = ("host-gw",)


def test_a_record_of_either_release_is_read_by_the_other() -> None:
    said = ("n1", (ip_address("172.30.0.11"),), (ip_network("10.244.0.64/26"),), ("host-gw",))
    old, new = WithoutMtu(*said), NodeRoutes(*said, mtu=1400)
    assert codec.open_sealed(NodeRoutes, codec.seal(old, "")) == (NodeRoutes(*said), "")
    assert codec.open_sealed(NodeRoutes, codec.seal(old, ""))[0].mtu == 0, "it does not say"
    assert codec.open_sealed(WithoutMtu, codec.seal(new, "")) == (old, "")
