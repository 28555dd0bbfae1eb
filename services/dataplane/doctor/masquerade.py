"""Brings what pods here denied together with their policies and Services, for ``core.doctor.masquerade`` to judge."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from chassis.runtime.service import Runtime
from proto.findings import DoctorRequest, Finding, object_name
from proto.objects import EndpointSlice, Node, Service
from proto.policy import CidrPartition, Revision
from services.dataplane.core.doctor import masquerade
from services.dataplane.core.doctor.ingress import Subject
from services.dataplane.core.endpoint.lifecycle import LocalEndpoints
from services.dataplane.core.monitor.names import nodes_at
from services.dataplane.feed import Feed
from services.dataplane.settings import Settings

_NO_BLOCKS = CidrPartition(revision=Revision(epoch="", sequence=0))


class MasqueradeDoctor:
    """``denials`` hears the ring buffer; ``check`` is what the runtime asks."""

    def __init__(self, feed: Feed, endpoints: LocalEndpoints) -> None:
        self._feed = feed
        self._endpoints = endpoints
        self.denials = masquerade.Denials()

    async def check(self, asked: DoctorRequest) -> Iterable[Finding]:
        """Of one policy or Service, or of all that are denied here."""
        denied = self.denials.now(time.clock_gettime_ns(time.CLOCK_MONOTONIC))
        if not denied or asked.kind == "dns" or (asked.kind == "node" and asked.name != self._feed.node):
            return ()
        facts = masquerade.Facts(
            node=self._feed.node,
            nodes=nodes_at(self._feed.all_of(Node)),
            services=tuple(self._feed.all_of(Service)),
            slices=tuple(self._feed.all_of(EndpointSlice)),
        )
        found = masquerade.check(denied, dict(subjects(self._feed, self._endpoints)), facts)
        kind = {"policy": "NetworkPolicy", "service": "Service"}.get(asked.kind)
        wanted = object_name(kind, *asked.name.split("/", 1)) if kind is not None else ""
        return tuple(one for one in found if not wanted or wanted in (one.about, *one.affects))


def subjects(feed: Feed, endpoints: LocalEndpoints) -> Iterator[tuple[int, Subject]]:
    """Pods of this node that policy is compiled for, by number of the endpoint."""
    for one in endpoints.up.values():
        if (policy := feed.rules.get(one.identity)) is not None:
            yield (
                one.index,
                Subject(
                    name=f"{one.first.namespace}/{one.first.pod}",
                    addresses=one.addresses,
                    policy=policy,
                    partition=feed.partitions().get(policy.namespace, _NO_BLOCKS),
                ),
            )


def start(runtime: Runtime[Settings], feed: Feed, endpoints: LocalEndpoints) -> masquerade.Denials:
    """Adds the check; returns what has to hear of the events of the programs."""
    doctor = MasqueradeDoctor(feed, endpoints)
    runtime.checks.add((masquerade.CODE,), doctor.check)
    return doctor.denials
