"""What the buckets say of nodes, blocks, claims and pools, and how far it can be believed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field
from ipaddress import ip_network

from kit.model_settings import ModelSettings
from kit.models import ENCRYPTS, HOST_GW
from kit.prefixes import overlap
from proto.addresses import CONTESTED, IPAM_HOLDER, Block, Claim
from proto.net import Address, Network
from proto.routes import NodeRoutes

Asked = tuple[str, ...]
"""Names of models, the one to be preferred first; empty: what is asked for is not known yet."""
_AS_THEY_ARE: Asked = (HOST_GW.name,)
_ENCRYPTED: Asked = (ENCRYPTS,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """What the buckets say, and how far it can be believed."""

    me: str
    """This node; empty in a gateway, which holds nothing."""
    routes: Mapping[str, NodeRoutes] = field(default_factory=dict)
    """By node."""
    claims: tuple[Claim, ...] = ()
    blocks: Mapping[Network, Block] = field(default_factory=dict)
    blocks_complete: bool = False
    claims_complete: bool = False
    routes_complete: bool = False
    """All of ``routes`` is known, though a node may have more to tell."""
    reported: Set[str] = frozenset()
    """Nodes whose part of ``routes`` is complete in the bucket's present epoch."""
    impostors: tuple[tuple[str, str], ...] = ()
    """Who wrote under its own key of ``routes`` in another's name, and in whose."""
    pools: Mapping[Network, Asked] = field(default_factory=dict)
    """Models that the packets to a pool's addresses may take (``kit.models.asked``: host-gw as long as no other is
    served), by the pool's range. The first that an address lies in counts."""
    names: Mapping[Network, str] = field(default_factory=dict)
    """Names of the pools, by range."""
    pools_complete: bool = False
    settings: ModelSettings = field(default_factory=ModelSettings)
    settings_complete: bool = False

    @property
    def whole(self) -> bool:
        """``blocks``, ``claims`` and ``routes`` are known whole."""
        return self.blocks_complete and self.claims_complete and self.routes_complete

    @property
    def all_reported(self) -> bool:
        """Whether each node that holds anything has told all of its own."""
        holders = {block.node for block in self.blocks.values()} | {claim.node for claim in self.claims}
        return self.whole and holders <= {"", IPAM_HOLDER, CONTESTED, self.me, *self.reported}

    def pool_of(self, where: Network | Address) -> Network | None:
        """The range of the pool that a prefix or an address lies in."""
        return next((cidr for cidr in self.pools if overlap(cidr, ip_network(where))), None)

    def asked_for(self, where: Network | Address) -> Asked:
        """The models asked for by the pool that a prefix or an address lies in; empty while that may yet be told."""
        if where.version in self.settings.encrypted:
            return _ENCRYPTED
        pool = self.pool_of(where)
        if pool is not None:
            return self.pools[pool]
        return _AS_THEY_ARE if self.pools_complete else ()


def holder_of(blocks: Mapping[Network, Block], claims: Iterable[Claim]) -> Callable[[Network], str]:
    """Who holds a block or a kept address, by its network; gives an empty name for what nobody has."""
    claimed = {ip_network(claim.address): claim.node for claim in claims}

    def holder(network: Network) -> str:
        block = blocks.get(network)
        return block.node if block is not None else claimed.get(network, "")

    return holder
