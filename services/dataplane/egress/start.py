"""The loop of the masquerade table, which follows from the pools and the nodes."""

from __future__ import annotations

from collections.abc import Callable

from chassis.runtime.reconcile import Again, Dirty, Done, Loop
from chassis.runtime.service import Runtime
from chassis.telemetry.health import Condition
from chassis.telemetry.log import Log
from proto.objects import IPPool, Node
from services.dataplane.core.egress.masquerade import ruleset
from services.dataplane.egress.masquerade import Masquerade
from services.dataplane.feed import Feed
from services.dataplane.settings import Settings


def start(runtime: Runtime[Settings], feed: Feed, condition: Condition, ready: Callable[[], None]) -> None:
    """Keeps the table from now on; ``condition`` holds and ``ready`` is called once it has been written."""
    egress = Egress(feed, condition, runtime.log, ready, has_loopback=bool(runtime.settings.loopback))
    Loop(runtime, "masquerade", cursors=[feed.changes(IPPool, Node)], apply=egress.apply, debounce=0.2)


class Egress:
    """``apply`` is what a loop over the objects runs."""

    def __init__(
        self, feed: Feed, condition: Condition, log: Log, ready: Callable[[], None], *, has_loopback: bool = False
    ) -> None:
        """``has_loopback``: the node's own addresses are on no uplink."""
        self._has_loopback = has_loopback
        self._feed = feed
        self._condition = condition
        self._log = log
        self._ready = ready
        self._masquerade = Masquerade()

    async def apply(self, dirty: Dirty) -> Done | Again:
        """The nftables table, once the pools and nodes are known."""
        feed = self._feed
        if not (feed.complete(IPPool) and feed.complete(Node)):
            if not self._condition.ok:
                self._condition.set(False, "pools and nodes are not known yet, so nothing can be masqueraded")
            return Again(after=1.0)
        addresses = [address for node in feed.all_of(Node) for address in node.addresses]
        node = feed.node_object() if self._has_loopback else None
        wanted = ruleset(feed.all_of(IPPool), addresses, node.addresses if node is not None else ())
        if await self._masquerade.keep(wanted, verify=dirty.full):
            self._log.info("masquerade-written")
        if not self._condition.ok:
            self._condition.set(True)
            self._ready()
        return Done()
