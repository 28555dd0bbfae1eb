"""Routes: what each node offers the others (value of ``routes.<node>``)."""

from __future__ import annotations

import msgspec

from proto.net import Address, Network


class WireguardKey(msgspec.Struct, frozen=True):
    """A WireGuard device of a node as others reach it, by its slot: both nodes of a pair use the same one."""

    slot: int
    """0 or 1."""
    key: str
    """The public key, 32 bytes in base64."""
    port: int
    """Of UDP, on each of the underlay addresses."""
    state: str = "home"
    """``home``: where this node is. ``guest``: there for others, whose home is this slot. ``leaving``: in a moment its
    key is another, so use the other slot if there is one."""


class NodeRoutes(msgspec.Struct, frozen=True):
    """Underlay addresses, the prefixes that live behind them, and the models the node's kernel can do."""

    node: str
    underlay: tuple[Address, ...]
    prefixes: tuple[Network, ...] = ()
    """Blocks this node holds. Host routes for claims are derived from ``claims``, not listed here."""
    models: tuple[str, ...] = ("host-gw",)
    mtu: int = 0
    """The smallest MTU of its uplinks, in bytes: what is larger does not reach its pods. 0: it does not say."""
    wireguard: tuple[WireguardKey, ...] = ()
    """Its WireGuard devices that are ready, two at most; none: it has no WireGuard (now)."""
    gateway: bool = False
    """A machine that is no node and holds nothing, whose own packets go to pods by tunnels (one with an API server)."""
