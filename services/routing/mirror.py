"""Mirrors of the buckets as the planner's argument.

A view that is not in sync keeps what it last knew; :class:`services.routing.core.plan.Mesh` says how far it can be
believed, so that nothing is taken away on hearsay. A record of ``routes`` counts under the name of its key alone: that
is what the bus lets only this node write, and a next hop told in another's name would draw that node's traffic. What a
node has told counts as long as it may still be so: the loss of a bucket takes nobody's addresses and keys away, until
the node has told all of its own again (a gateway holds nothing by which it could be known to be gone).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import replace

from chassis.bus.client import Bus
from chassis.bus.view import View
from kit.model_settings import model_settings
from kit.models import ENCRYPTS, SERVED, Model, asked
from kit.pools import judge_pools
from proto.addresses import Block, Claim
from proto.codec import Malformed, decode_segment, kind_prefix
from proto.net import Network
from proto.objects import KIND_OF, FelixConfiguration, IPPool
from proto.routes import NodeRoutes
from proto.subjects import BLOCKS, CLAIMS, OBJECTS, ROUTES
from services.routing.core.mesh import Asked, Mesh

POOLS = kind_prefix(KIND_OF[IPPool])
FELIX = kind_prefix(KIND_OF[FelixConfiguration])


class Mirror:
    """Views of ``routes``, ``claims``, ``blocks``, the IPPools and what is set of the models.

    ``node`` is empty in a gateway; ``served``: the models that there are.
    """

    def __init__(self, bus: Bus, node: str, served: Mapping[str, Model] = SERVED) -> None:
        self._node = node
        self._served = served
        self.routes = bus.bucket(ROUTES).watch({"": NodeRoutes}, markers=(), name="routes")
        self.claims = bus.bucket(CLAIMS).watch({"": Claim}, name="claims")
        self.blocks = bus.bucket(BLOCKS).watch({"": Block}, name="blocks")
        self.pools = bus.bucket(OBJECTS).watch({POOLS: IPPool}, prefixes=(POOLS,), markers=(POOLS,), name="pools")
        self.felix = bus.bucket(OBJECTS).watch(
            {FELIX: FelixConfiguration}, prefixes=(FELIX,), markers=(), name="felixconfigurations"
        )
        self._announced: dict[str, NodeRoutes] = {}
        """What stands, or stood and may still be so, by key of ``routes``."""

    @property
    def views(self) -> tuple[View, ...]:
        """All of them."""
        return self.routes, self.claims, self.blocks, self.pools, self.felix

    def look(self) -> Mesh:
        """The present state."""
        reported = {
            key: entry.value for key, entry in self.routes.entries.items() if isinstance(entry.value, NodeRoutes)
        }
        honest = {key: routes for key, routes in reported.items() if routes.node == _writer(key)}
        blocks = [entry.value for entry in self.blocks.entries.values() if isinstance(entry.value, Block)]
        claims = tuple(entry.value for entry in self.claims.entries.values() if isinstance(entry.value, Claim))
        self._follow_announced(honest, {*(block.node for block in blocks), *(claim.node for claim in claims)})
        felix = (entry.value for entry in self.felix.entries.values() if isinstance(entry.value, FelixConfiguration))
        settings = model_settings(felix, self._node)
        if ENCRYPTS not in self._served:
            settings = replace(settings, encrypted=frozenset())
        pools, names = self._asked(blocks, settings.encrypted)
        return Mesh(
            me=self._node,
            routes={routes.node: routes for routes in self._announced.values()},
            impostors=tuple((_writer(key), reported[key].node) for key in sorted(reported.keys() - honest.keys())),
            claims=claims,
            blocks={block.cidr: block for block in blocks},
            pools=pools,
            names=names,
            pools_complete=self.pools.synced,
            settings=settings,
            settings_complete=self.felix.synced and self.felix.scope_complete(FELIX),
            routes_complete=self.routes.synced,
            blocks_complete=self.blocks.synced,
            claims_complete=self.claims.synced,
            reported=frozenset(
                routes.node for key, routes in honest.items() if self.routes.synced and self.routes.scope_complete(key)
            ),
        )

    def _follow_announced(self, honest: Mapping[str, NodeRoutes], holders: Set[str]) -> None:
        """Takes in what stands in ``routes``, lets go of what surely is no more. ``holders``: of blocks and claims."""
        whole = self.blocks.synced and self.claims.synced
        for key, routes in tuple(self._announced.items()):
            gone = whole and not routes.gateway and routes.node not in holders
            if gone or (self.routes.synced and self.routes.scope_complete(key)):
                del self._announced[key]
        self._announced |= honest

    def _asked(
        self, blocks: Iterable[Block], encrypted: frozenset[int]
    ) -> tuple[dict[Network, Asked], dict[Network, str]]:
        """The models that each pool asks for, and its name, by its range; where ranges overlap, the pool that ``ipam``
        uses first.
        """
        pools = {
            entry.value.name: entry.value for entry in self.pools.entries.values() if isinstance(entry.value, IPPool)
        }
        judged = judge_pools(pools.values(), {block.pool for block in blocks if block.node}, self._served)
        models, names = dict[Network, Asked](), dict[Network, str]()
        for pool in (*judged.sound, *judged.overlapping):
            if pool.cidr not in models:
                models[pool.cidr] = asked(pools[pool.name], self._served, encrypted)
                names[pool.cidr] = pool.name
        return models, names

    def not_synced(self) -> str:
        """Why not everything is known; empty when it is. Pools are not waited for: what none asks goes by host-gw."""
        return next((view.why() for view in (self.routes, self.claims, self.blocks) if not view.synced), "")


def _writer(key: str) -> str:
    """Node that a key of ``routes`` belongs to."""
    try:
        return decode_segment(key)
    except Malformed:
        return key
