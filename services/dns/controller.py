"""Decides CoreDNS' configuration and size, and reports what was seen, while it holds the lease.

Promises that ``dns.coredns`` is only written by compare-and-set and only when Corefile or size differ, that nothing is
decided before the nodes and the present Corefile are known, and that a report comes every ``seconds`` even when no
server answers (``servers`` is 0 then): silence would look like health. A Corefile that cannot be read is left as it is,
and told on its ConfigMap. A decision is part of the trace of the change that it follows from, else has one of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from prometheus_client import Gauge

from chassis.bus.causes import Causes
from chassis.bus.client import Bus, Conflict, View
from chassis.runtime.election import Election
from chassis.runtime.reconcile import Again, Dirty, Done
from chassis.telemetry.log import Log
from chassis.telemetry.traces import Telemetry
from kit.once import Once
from proto.dns import CoreDNSDecision, digest_of
from proto.events import ObjectFault
from proto.net import Address
from proto.objects import ConfigMap, Deployment, EndpointSlice, Node
from proto.subjects import DNS, event_subject, object_fault_subject
from services.dns.asker import Asker
from services.dns.changes import Changes
from services.dns.core.corefile import Recipe
from services.dns.core.decision import ByHand, Chosen, choose, overruled
from services.dns.core.question import name_of_api
from services.dns.core.samples import Counts, report, since, together
from services.dns.core.servers import servers as servers_of
from services.dns.core.sizing import AHEAD_SECONDS, Rule, Size, ahead, is_quiet, scaled, size
from services.dns.core.tuning import Window, summed
from services.dns.scrape import Scraper

NAMESPACE = "kube-system"
DECISION_KEY = "coredns"
REPORT_KEY = "report"
CONFIG_MAP, COREFILE = "coredns", "Corefile"
DEPLOYMENT = "coredns"
_NAMED: Mapping[str, Any] = {
    "k8s__object__kind": "ConfigMap",
    "k8s__namespace__name": NAMESPACE,
    "k8s__object__name": CONFIG_MAP,
}
PATIENCE = 120.0
"""Seconds that an autoscaler may have fewer replicas than are asked for: it looks every 15 s, at what is scraped."""
AGAIN = 600.0
"""Seconds after which a fault that is still there is told again."""
REMEMBERED = 6
"""Reports whose highest rate counts for sizing: a minute, with the default time between two."""

_WANTED = Gauge(
    "airmesh_dns_replicas_wanted", "Replicas of CoreDNS that nodes and load ask for", ("namespace", "deployment")
)
"""Of the copy with the lease alone: an autoscaler that reads it (examples/dns/autoscaler.yaml) never reads two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """What follows from the settings alone."""

    recipe: Recipe
    rule: Rule
    service: str
    """Name of the DNS Service in kube-system."""


class Controller:
    """``decide`` and ``observe`` are what the reconcile loops run."""

    def __init__(  # noqa: PLR0913 - what it reads and whom it tells, each by name
        self,
        intent: Intent,
        *,
        bus: Bus,
        objects: View,
        decisions: View,
        lease: Election,
        scraper: Scraper,
        asker: Asker,
        changes: Changes,
        log: Log,
        telemetry: Telemetry,
        causes: Causes,
    ) -> None:
        """``causes``: of the nodes and of CoreDNS' ConfigMap."""
        self._telemetry = telemetry
        self._causes = causes
        self._intent = intent
        self._bus = bus
        self._kv = bus.bucket(DNS)
        self._objects = objects
        self._decisions = decisions
        self._lease = lease
        self._scraper = scraper
        self._asker = asker
        self._changes = changes
        self._log = log
        self._counted: dict[str, Counts] = {}
        self._counted_at = 0.0
        self._windows: deque[Window] = deque(maxlen=REMEMBERED)
        self._rates: deque[tuple[float, float]] = deque(maxlen=REMEMBERED)
        self._quiet_since: float | None = None
        self._once: Once[ByHand] = Once(again=AGAIN)
        self._once_scaled: Once[str] = Once(again=AGAIN)
        self._too_few_since: float | None = None

    async def decide(self, _dirty: Dirty) -> Done | Again:
        """One pass over the decision; raises Unavailable."""
        self._causes.gather()
        if not (self._lease.held and self._objects.synced and self._decisions.synced):
            _WANTED.clear()
            self._causes.done()  # another copy decides, or what changed is looked at again as a whole
            return Done()
        if await self._changes.wish():
            return Again(0.05)
        corefile = self._changes.held(choose(self._changes.recipe, self._corefile()))
        self._report(corefile.by_hand)
        entry = self._decisions.entries.get(DECISION_KEY)
        present = cast("CoreDNSDecision", entry.value) if entry is not None else None
        if not await self._changes.begin(corefile, present.corefile if present is not None else None):
            return Again(0.2)
        chosen = self._size(present)
        if present is not None and present.replicas == chosen.replicas and _says(present, corefile):
            self._causes.done()
            return Done()
        decision = CoreDNSDecision(
            namespace=NAMESPACE,
            corefile=corefile.text,
            replicas=chosen.replicas,
            reason=chosen.reason,
            of=digest_of(corefile.of) if corefile.of is not None else "",
        )
        with self._telemetry.together(
            "dns.decide", self._causes.traces, alone=True, airmesh__replicas=chosen.replicas, **_NAMED
        ):
            if entry is None:
                written = await self._kv.create(DECISION_KEY, decision, mend=True)
            else:
                written = await self._kv.update(DECISION_KEY, decision, entry.revision)
            if isinstance(written, Conflict):
                return Again(0.2)
            self._log.info("coredns-decided", replicas=chosen.replicas, reason=chosen.reason)
        self._causes.done()
        self._quiet_since = None
        return Done()

    async def observe(self, dirty: Dirty) -> Done | Again:
        """One report; raises Unavailable."""
        if not (self._lease.held and dirty.full):
            return Done()
        now, servers = time.monotonic(), self._servers()
        name = name_of_api(self._intent.recipe.cluster_domain)
        counted, answered = await asyncio.gather(self._scraper.counts(servers), self._asker.ask(servers, name))
        before, began = self._counted, self._counted_at
        self._counted, self._counted_at = counted, now
        if began:
            latest = Window(
                seconds=now - began,
                counts=together(since(before.get(key), counts) for key, counts in counted.items()),
                asked=len(answered),
                unanswered=sum(not one for one in answered.values()),
            )
            self._windows.append(latest)
            self._rates.append((now, latest.counts.queries / max(latest.seconds, 0.001)))
            await self._publish(latest, len(counted))
            if self._decisions.synced and self._objects.synced:
                await self._changes.observe(self._corefile(), summed(self._windows), counted, latest)
        return Done()

    async def _publish(self, latest: Window, servers: int) -> None:
        reported = report(
            latest.counts,
            seconds=latest.seconds,
            servers=servers,
            asked=latest.asked,
            unanswered=latest.unanswered,
        )
        self._bus.publish(event_subject("dns", "report"), reported)
        await self._kv.put(REPORT_KEY, reported)

    def _size(self, present: CoreDNSDecision | None) -> Size:
        """Replicas: as an autoscaler has them where one owns the Deployment, else by nodes and load."""
        owned = self._scaled()
        nodes, rate = self._nodes(), ahead(self._rates, AHEAD_SECONDS)
        replicas = present.replicas if present is not None else None
        quiet = 0.0 if self._changes.is_under_way else self._quiet_for(nodes, rate)
        wanted = size(self._intent.rule, nodes=nodes, queries=rate, present=replicas, quiet_for=quiet)
        _WANTED.labels(NAMESPACE, DEPLOYMENT).set(wanted.replicas)
        self._report_autoscaler(owned, wanted)
        return wanted if owned is None else scaled(owned.scaled_by, owned.replicas, wanted)

    def _report_autoscaler(self, owned: Deployment | None, wanted: Size) -> None:
        """On the Deployment, when an autoscaler has kept fewer replicas than load and nodes ask for, for a while."""
        now, short = time.monotonic(), owned is not None and owned.replicas < wanted.replicas
        self._too_few_since = (self._too_few_since or now) if short else None
        lasting = [owned] if owned and self._too_few_since and now - self._too_few_since >= PATIENCE else []
        if self._once_scaled.take([one.scaled_by for one in lasting], now):
            self._publish_fault("Deployment", DEPLOYMENT, overruled(lasting[0].scaled_by, lasting[0].replicas, wanted))

    def _scaled(self) -> Deployment | None:
        values = (entry.value for entry in self._objects.entries.values())
        return next((one for one in values if isinstance(one, Deployment) and one.scaled_by), None)

    def _corefile(self) -> str | None:
        """The present text; None where there is none."""
        values = [entry.value for entry in self._objects.entries.values()]
        configs = [dict(one.content) for one in values if isinstance(one, ConfigMap) and one.namespace == NAMESPACE]
        return next((content[COREFILE] for content in configs if COREFILE in content), None)

    def _report(self, by_hand: ByHand | None) -> None:
        """On the ConfigMap: at once when it is another fault than before, then as long as it lasts."""
        due = self._once.take([by_hand] if by_hand is not None else [], time.monotonic())
        if by_hand is None or not due:
            return
        self._publish_fault("ConfigMap", CONFIG_MAP, by_hand)

    def _publish_fault(self, kind: str, name: str, found: ByHand) -> None:
        fault = ObjectFault(
            service="dns",
            node="",
            group="apps" if kind == "Deployment" else "",
            kind=kind,
            namespace=NAMESPACE,
            name=name,
            reason=found.reason,
            fault=found.fault,
            remedy=found.remedy,
        )
        self._log.warning(
            "coredns-object-fault", kind=kind, reason=found.reason, fault=found.fault, remedy=found.remedy
        )
        self._bus.publish(object_fault_subject("dns"), fault)

    def _nodes(self) -> int:
        return sum(isinstance(entry.value, Node) for entry in self._objects.entries.values())

    def _servers(self) -> Mapping[str, Address]:
        values = [entry.value for entry in self._objects.entries.values()]
        return servers_of((one for one in values if isinstance(one, EndpointSlice)), NAMESPACE, self._intent.service)

    def _quiet_for(self, nodes: int, rate: float) -> float:
        """How long one replica fewer would have done."""
        entry = self._decisions.entries.get(DECISION_KEY)
        now = time.monotonic()
        if entry is None or not is_quiet(self._intent.rule, nodes=nodes, queries=rate, present=entry.value.replicas):
            self._quiet_since = None
            return 0.0
        if self._quiet_since is None:
            self._quiet_since = now
        return now - self._quiet_since


def _says(decision: CoreDNSDecision, corefile: Chosen) -> bool:
    """Whether a decision brings the present text to the one that is chosen."""
    if decision.corefile != corefile.text:
        return False
    return corefile.of == corefile.text or decision.of == (digest_of(corefile.of) if corefile.of is not None else "")
