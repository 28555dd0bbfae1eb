"""What the bus says of nodes, fed to ``core.tunnel.peers``: their addresses, blocks and claims, and the API's word.

Owns what stays known while it cannot be known: a block that vanished while ``blocks`` is not whole, and what a node
told of itself as long as it may still be there (it holds something, and has not said in this epoch that its record is
all; a gateway holds nothing, and stays until it speaks again). So the loss of a bucket takes no tunnel away, and lets
nobody else have an address meanwhile. Promises: a pass costs what changed in the views. :attr:`Known.begun` says when
all was here once; before that nothing of it is written.
"""

from __future__ import annotations

from proto.codec import Malformed, decode_segment, encode_segment
from proto.identity import Reserved
from proto.net import Address
from proto.objects import EndpointSlice, Node
from proto.routes import NodeRoutes
from services.dataplane.core.ipcache.entries import fixed_entries
from services.dataplane.core.tunnel.peers import TunnelPeers
from services.dataplane.feed import Feed, HeldBlocks, HeldClaims


class Known:
    """See the module."""

    def __init__(self, feed: Feed, peers: TunnelPeers) -> None:
        self._feed = feed
        self._peers = peers
        self._blocks = HeldBlocks(feed.blocks)
        self._claims = HeldClaims(feed.claims)
        self._routes = feed.routes.cursor()
        self._objects = feed.changes(Node, servers=True)
        self._announced: set[str] = set()
        """Keys of ``routes`` whose addresses are known."""
        self._silent: set[str] = set()
        """Of these, the ones that are not in the bucket."""
        self._gateways: set[str] = set()
        """Of these, the ones of machines that are no nodes."""
        self._begun = False

    @property
    def begun(self) -> bool:
        """Whether all has been here once."""
        if not self._begun:
            feed = self._feed
            views = feed.routes.synced and feed.blocks.synced and feed.claims.synced
            self._begun = views and feed.complete(Node) and feed.complete(EndpointSlice)
        return self._begun

    @property
    def whole(self) -> bool:
        """Whether all is here now, so that what it does not say is not so."""
        feed = self._feed
        views = (feed.blocks, feed.claims, feed.routes)
        if any(view.unreadable for view in views) or not (self._may_forget() and feed.routes.synced):
            return False
        if not (feed.complete(Node) and feed.complete(EndpointSlice)) or self._silent - self._gateways:
            return False
        others = (node for node in self._peers.holders if node != feed.node)
        return all(feed.routes.scope_complete(encode_segment(node)) for node in others)

    def follow(self) -> None:
        """Takes in what changed."""
        for cidr, block in self._blocks.changes():
            self._peers.set_block(cidr, block)
        for address, claim in self._claims.changes():
            self._peers.set_claim(address, claim)
        for key in self._routes.take() | self._silent:
            if not key.startswith("_"):
                self._follow_node(key)
        if self._objects.pending:
            self._objects.take()
            self._follow_objects()

    def _follow_node(self, key: str) -> None:
        node, entry = _node_of(key), self._feed.routes.entries.get(key)
        value = entry.value if entry is not None else None
        if isinstance(value, NodeRoutes) and value.node == node:  # in its own name
            of_node, of_gateway = ((), value.underlay) if value.gateway else (value.underlay, ())
            self._peers.announce(node, of_node)
            self._peers.set_gateway(node, of_gateway, value.models)
            self._announced.add(key)
            (self._gateways.add if value.gateway else self._gateways.discard)(key)
        elif key in self._announced and not (self._has_announced_all(key) or self._is_gone(key, node)):
            self._silent.add(key)
            return
        elif key in self._announced:
            self._peers.announce(node, ())
            self._peers.set_gateway(node, (), ())
            self._announced.discard(key)
        self._silent.discard(key)

    def _has_announced_all(self, key: str) -> bool:
        """A node has said, in this epoch, that what stands in the bucket is all."""
        return self._feed.routes.synced and self._feed.routes.scope_complete(key)

    def _is_gone(self, key: str, node: str) -> bool:
        """A node is surely no more: ``ipam`` has taken everything back."""
        return key not in self._gateways and self._may_forget() and not self._peers.holds(node)

    def _may_forget(self) -> bool:
        return self._feed.blocks.scope_complete() and self._feed.claims.synced

    def _follow_objects(self) -> None:
        feed = self._feed
        nodes = {node.name: frozenset(node.addresses) for node in feed.all_of(Node)}
        named = fixed_entries(feed.node, (), feed.all_of(EndpointSlice), ())
        servers: set[Address] = {at for at, peer in named.items() if peer.identity == Reserved.KUBE_APISERVER}
        self._peers.set_api(nodes, servers)


def _node_of(key: str) -> str:
    """Node that a key of ``routes`` is of: the one that the bus lets write there."""
    try:
        return decode_segment(key)
    except Malformed:
        return key
