"""Which CoreDNS servers there are: the endpoints of the cluster's DNS Service, each once, whatever families it has.

A server is known by its pod's uid, so that a pod that takes over an address is not mistaken for the one before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from proto.net import Address
from proto.objects import EndpointSlice


def servers(slices: Iterable[EndpointSlice], namespace: str, service: str) -> Mapping[str, Address]:
    """Server (pod uid, else address) → an address of it, the IPv4 one if there are two. Those that serve only."""
    found: dict[str, Address] = {}
    for one in slices:
        if (one.namespace, one.service) != (namespace, service):
            continue
        for endpoint in one.endpoints:
            if not endpoint.serving or not endpoint.addresses:
                continue
            address = endpoint.addresses[0]
            key = endpoint.pod_uid or str(address)
            if key not in found or address.version < found[key].version:
                found[key] = address
    return dict(sorted(found.items()))
