"""Check of nodes whose kernel holds an older compilation of policy than the one that is published.

Each node acknowledges the revision that its maps hold whole (``acks``). A node lags while that does not cover what was
published when the question came; it is a fault when meanwhile its acknowledgement has not moved at all, since one that
moves is at work.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from proto.findings import KERNEL, Expected, Finding, Fix, Observed, node_name
from proto.policy import Ack, Revision

KERNEL_LAGS = "policy-kernel-lags"


def is_waited_for(published: Revision, acks: Mapping[str, Ack]) -> bool:
    """Whether some node has not acknowledged what was published."""
    return any(not ack.rules.covers(published) for ack in acks.values())


def check(
    published: Revision, before: Mapping[str, Ack], now: Mapping[str, Ack], *, seconds: float, only: str = ""
) -> Iterator[Finding]:
    """``before``: acknowledgements by node when the question came, ``now``: ``seconds`` later. ``only`` this node."""
    for node, ack in sorted(now.items()):
        standing = before.get(node)
        if standing is None or standing.rules != ack.rules or ack.rules.covers(published) or only not in ("", node):
            continue
        yield Finding(
            code=KERNEL_LAGS,
            fault="policy",
            about=node_name(node),
            node=node,
            cause="its kernel holds an older policy than the published one, and has not moved on",
            expected=Expected("the published policy in the maps", revision=published.text),
            observed=(
                Observed("map", f"acknowledged: {ack.rules.text}, unchanged for {seconds:.0f} s"),
                Observed(
                    "agent", f"{ack.pods} pods there; its agent says that it is {'' if ack.ready else 'not '}ready"
                ),
            ),
            fixes=(
                Fix(
                    command="kubectl -n airmesh-system delete pod -l app.kubernetes.io/name=dataplane "
                    f"--field-selector spec.nodeName={node}",
                    risk="None for packets: programs and maps stay while the agent starts again.",
                    on="cluster",
                ),
            ),
            precedence=KERNEL,
        )
