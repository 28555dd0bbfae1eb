"""What NetworkPolicies compile to, byte for byte as nodes have it in their maps: a new compiler says nothing anew."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b

import msgspec
import pytest

from proto.codec import encode
from services.policy.core.graph import Graph
from services.policy.core.limits import Limits
from tests.core.policy.cluster import feed, keyed
from tests.core.policy.worlds import seeded

WORLDS = 100
DIGESTS = {
    0: "594423d7d94ad3fed37767142372b41a",
    100: "b1d023bb29d049e6be5022e5ab118eea",
    200: "51545e99067bde138fe1202ba8a70354",
    300: "c05502895dd00bfdd87c83457ae5bb2a",
    400: "282717903efff2e8b900068846767746",
    500: "86242092333d10efe9298707cca2e2f6",
}
"""Of each hundred seeds' worlds. They change only when what nodes are told is meant to change."""


def published(graph: Graph) -> Iterator[bytes]:
    """All that is published, but for revisions."""
    for _, one in sorted(graph.compiled.items()):
        yield encode(one.policy)
        if one.record is not None:
            yield encode(one.record)
    for namespace, partition in sorted(graph.partitions.items()):
        yield msgspec.msgpack.encode((namespace, partition.digest))


@pytest.mark.parametrize("start", DIGESTS)
def test_network_policies_compile_to_the_same_bytes(start: int) -> None:
    digest = blake2b(digest_size=16)
    for seed in range(start, start + WORLDS):
        world = seeded(seed).world(pods_per_namespace=6, policies=30)
        # Now and then so little room that rules of equal ports become one, or a direction is denied whole.
        limits = Limits(rules=4, peers=8, named_ports=1) if seed % 4 == 0 else Limits()
        for value in published(feed(Graph(limits), keyed(world))):
            digest.update(value)
    assert digest.hexdigest() == DIGESTS[start]
