"""Identity changes of running pods, when their labels or their namespace's change.

Owns the moving of an endpoint from one identity to the next. Promises: the new identity is put in force only when its
rules are here and the frontier has passed the change, so a pod is never without policy in between; the journal numbers
the change, so other nodes take it for the later one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec

from chassis.runtime.reconcile import Dirty, Done
from chassis.runtime.service import Runtime
from proto.objects import Namespace, Pod
from services.dataplane.core.cni.request import PodRef
from services.dataplane.core.endpoint.admission import pod_of
from services.dataplane.core.endpoint.lifecycle import LocalEndpoint
from services.dataplane.core.ipam.journal_records import Lease
from services.dataplane.endpoint.admission import AdmissionWait, Entered
from services.dataplane.endpoint.registry import Registry
from services.dataplane.feed import Feed
from services.dataplane.ipam.journal import Journal
from services.dataplane.policy.enforce import Enforcer
from services.dataplane.settings import Settings


class Relabel:
    """Follows the identities of this node's pods."""

    def __init__(
        self,
        feed: Feed,
        admission: AdmissionWait,
        registry: Registry,
        journal: Journal,
        enforcer: Enforcer,
        runtime: Runtime[Settings],
    ) -> None:
        self._feed = feed
        self._admission = admission
        self._registry = registry
        self._journal = journal
        self._enforcer = enforcer
        self._log = runtime.log
        self._telemetry = runtime.telemetry

    async def apply(self, dirty: Dirty) -> Done:
        """Looks at every endpoint of the node, when anything changed that identities are made of."""
        objects, *others = dirty.by_cursor
        if not (dirty.full or any(others) or self._feed.concern(objects, Pod, Namespace)):
            return Done()
        for found in list(self._registry.up.values()):
            one = found if found.first.pod else self._named(found)
            wanted = PodRef(namespace=one.first.namespace, name=one.first.pod, uid=one.first.pod_uid)
            entered = self._admission.look(wanted)
            if isinstance(entered, Entered) and entered.admitted.identity != one.identity:
                await self._move(one, entered)
        return Done()

    def _named(self, one: LocalEndpoint) -> LocalEndpoint:
        """Of one taken over after the journal was lost only the uid is known; its object tells the rest."""
        pod = pod_of(self._feed.all_of(Pod), one.first.pod_uid)
        if pod is None:
            return one
        named = tuple(msgspec.structs.replace(lease, namespace=pod.namespace, pod=pod.name) for lease in one.leases)
        known = replace(one, leases=named)
        self._registry.put(known)
        return known

    async def _move(self, one: LocalEndpoint, entered: Entered) -> None:
        registry = self._registry
        async with registry.alone(one.attachment):
            current = registry.up.get(one.attachment)
            if current is None or current.index != one.index:
                return
            identity, first = entered.admitted.identity, one.first
            named: dict[str, Any] = {"k8s__namespace__name": first.namespace, "k8s__pod__name": first.pod}
            with self._telemetry.span(
                "identity-change", entered.traceparent, k8s__node__name=self._feed.node, **named
            ) as span:
                changed = await self._journal.change(one.attachment, identity, one.mac)
                moved = LocalEndpoint(
                    attachment=one.attachment,
                    leases=_as_before(changed.leases, one, identity),
                    index=one.index,
                    cookie=one.cookie,
                    traceparent=span.traceparent,
                )
                registry.put(moved)
                self._enforcer.learn(moved)
                self._log.info(
                    "identity-changed",
                    pod=f"{first.namespace}/{first.pod}",
                    before=f"{one.identity:016x}",
                    now=f"{identity:016x}",
                )


def _as_before(leases: tuple[Lease, ...], one: LocalEndpoint, identity: int) -> tuple[Lease, ...]:
    """The leases as the journal has them now, with the names that the registry knows."""
    first = one.first
    return tuple(
        msgspec.structs.replace(lease, identity=identity, namespace=first.namespace, pod=first.pod) for lease in leases
    )
