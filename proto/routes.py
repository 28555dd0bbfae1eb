"""Routes: what each node offers the others (value of ``routes.<node>``)."""

from __future__ import annotations

import msgspec

from proto.net import Address, Network


class NodeRoutes(msgspec.Struct, frozen=True):
    """Underlay addresses, the prefixes that live behind them, and the models the node's kernel can do."""

    node: str
    underlay: tuple[Address, ...]
    prefixes: tuple[Network, ...] = ()
    """Blocks this node holds. Host routes for claims are derived from ``claims``, not listed here."""
    models: tuple[str, ...] = ("host-gw",)
    mtu: int = 0
    """The smallest MTU of its uplinks, in bytes: what is larger does not reach its pods. 0: it does not say."""
