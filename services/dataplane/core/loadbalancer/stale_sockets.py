"""Which connected UDP sockets talk to a backend that left its Service.

A Service's backend is chosen once, in ``connect``; a UDP socket never learns that nobody is there any more. Stale is
one that the programs sent to its peer (their maps say so; who connects to a pod's own address is left alone) when
that peer stands behind no front (``am_members``) and serves in no EndpointSlice. Serving counts as with kube-proxy
(pkg/proxy/conntrack/cleanup.go), not readiness: a pod that terminates in order keeps its clients until it stops, and
one that only hints, zones or policies took out of the choice keeps them too. TCP ends by itself. Pure functions.
"""

from __future__ import annotations

from collections import Counter
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


class UdpBackends:
    """Addresses that serve a UDP port of a Service: when one of them goes, sockets have to be looked at."""

    def __init__(self) -> None:
        self._of_slice: dict[str, frozenset[Address]] = {}
        self._slices: Counter[Address] = Counter()
        """How many slices an address serves in."""

    @property
    def addresses(self) -> frozenset[Address]:
        """All of them."""
        return frozenset(self._slices)

    def put(self, key: str, now: EndpointSlice | None) -> bool:
        """What a key of the bucket holds now; None: no slice. Returns whether an address serves UDP no more."""
        udp = now is not None and now.service and any(port.protocol == UDP for port in now.ports)
        fresh = serving([now]) if udp and now is not None else frozenset()
        before = self._of_slice.pop(key, frozenset())
        if fresh:
            self._of_slice[key] = fresh
        self._slices.update(fresh - before)
        left = before - fresh
        self._slices.subtract(left)
        gone = [address for address in left if not self._slices[address]]
        for address in gone:
            del self._slices[address]
        return bool(gone)

    def keys(self) -> frozenset[str]:
        """Of slices that have such addresses."""
        return frozenset(self._of_slice)
