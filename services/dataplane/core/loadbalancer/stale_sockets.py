"""Which connected UDP sockets talk to a backend that left its Service.

A Service's backend is chosen once, in ``connect``; a UDP socket never learns that nobody is there any more. Stale is
one that the programs sent to its peer (their maps say so; who connects to a pod's own address is left alone) when
that peer stands behind no front (``am_members``) and serves in no EndpointSlice. Serving counts as with kube-proxy
(pkg/proxy/conntrack/cleanup.go), not readiness: a pod that terminates in order keeps its clients until it stops, and
one that only hints, zones or policies took out of the choice keeps them too. TCP ends by itself. Pure functions.
"""

from __future__ import annotations

from collections.abc import Iterable

from proto.net import Address
from proto.objects import EndpointSlice

UDP = 17


def serving(slices: Iterable[EndpointSlice]) -> frozenset[Address]:
    """Addresses that serve anything: their sockets stay."""
    return frozenset(
        address
        for part in slices
        for endpoint in part.endpoints
        if endpoint.ready or endpoint.serving
        for address in endpoint.addresses
    )


def serving_udp(slices: Iterable[EndpointSlice]) -> frozenset[Address]:
    """Addresses that serve a UDP port of a Service: when one of them goes, sockets have to be looked at."""
    return serving(part for part in slices if part.service and any(port.protocol == UDP for port in part.ports))
