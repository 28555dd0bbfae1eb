"""The choice of a backend by a flow's hash: what makes it the same on every node, and nobody's to foresee.

The programs take ``am_backends[number, hash * backends >> 32]`` (``bpf/lb.h``). Two nodes with the same endpoints agree
on it because the backends stand in the order of :func:`in_order`, whatever happened before, and because the hash has
the key of :func:`choice_key` everywhere. When endpoints come or go, flows that a node knows keep their backend; of
those that no node remembers, about half choose another.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

from services.dataplane.core.datapath.service_layout import ChoiceKey
from services.dataplane.core.loadbalancer.endpoint_choice import Target


def choice_key(cluster_uid: str) -> ChoiceKey:
    """The key of a cluster, from the uid of its namespace ``kube-system``: known inside it alone."""
    digest = blake2b(key=cluster_uid.encode()[:64], digest_size=16, person=b"airmesh.backend").digest()
    return ChoiceKey(first=int.from_bytes(digest[:8], "little"), second=int.from_bytes(digest[8:], "little"))


def in_order(targets: Iterable[Target]) -> tuple[Target, ...]:
    """Each once, by address and port."""
    return tuple(sorted(set(targets), key=lambda target: (target[0].version, int(target[0]), target[1])))
