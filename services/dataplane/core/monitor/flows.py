"""From a record of the ring buffer to the event that consumers read.

Owns the translation (numbers to names, rule numbers to the policies behind them, the kernel's clock to the wall clock)
and the budget of events a second that leave the node. Promises: never raises for what a program may have written; a
verdict is told by the policy that judged, whatever has been received since, or by none; who forged a source is named by
the link that it came by, never by the address that it took; what is not sent is counted and told in the next event of
the same reason. Times are nanoseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from proto.flow import DropReason, FlowEvent
from proto.policy import Direction
from services.dataplane.core.datapath.layout import (
    NO_RULE,
    Event,
)
from services.dataplane.core.monitor.names import Names
from services.dataplane.core.policy.history import PolicyNames

FORWARDED = (DropReason.FORWARDED, DropReason.REPLY)
FORGED = (
    DropReason.SPOOFED_ADDRESS,
    DropReason.SPOOFED_MAC,
    DropReason.SPOOFED_NEIGHBOUR,
    DropReason.SPOOFED_ERROR,
    DropReason.TUNNEL_SOURCE,
    DropReason.UNENCRYPTED,
)
"""Reasons whose packet's source may be anybody's address."""


_REASONS = {int(reason): reason.name for reason in DropReason}


def verdict_of(event: Event) -> str:
    """``forwarded`` or ``dropped``: the last part of the event's subject."""
    return "forwarded" if event.reason in FORWARDED else "dropped"


def reason_name(number: int) -> str:
    """Name of a drop reason; a number of a newer program keeps its number."""
    return _REASONS.get(number) or f"REASON_{number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreter:
    """All that an event is read with."""

    node: str
    names: Names
    policies: Callable[[int, int], PolicyNames | None]
    """What the policy of an identity and a number is called (``PolicyHistory.names``)."""
    wall_offset: int
    """Wall clock minus CLOCK_MONOTONIC."""

    def read(self, event: Event, missed: int = 0) -> FlowEvent:
        """The published form of an event."""
        egress = event.direction == Direction.EGRESS
        source, destination = (event.subject, event.peer) if egress else (event.peer, event.subject)
        policy = self.policies(event.subject, event.policy) if event.policy else None
        forged = event.reason in FORGED
        pod = self.names.by_endpoint.get(event.endpoint, "")
        source_name = "" if forged else self.names.of(event.source, source)
        destination_name = self.names.of(event.destination, destination)
        return FlowEvent(
            node=self.node,
            time_ns=event.time + self.wall_offset,
            reason=reason_name(event.reason),
            direction="egress" if egress else "ingress",
            source=event.source,
            destination=event.destination,
            protocol=event.protocol,
            source_port=event.source_port,
            destination_port=event.destination_port,
            source_identity=source,
            destination_identity=destination,
            source_name=(pod if egress else "") or source_name,
            destination_name=("" if egress else pod) or destination_name,
            policies=policies_of(event, policy),
            rule=-1 if event.rule == NO_RULE else event.rule,
            revision=policy.revision if policy else "",
            length=event.length,
            missed=event.missed + missed,
            interface=self.names.interfaces.get(event.ifindex, f"#{event.ifindex}") if forged and event.ifindex else "",
        )


def policies_of(event: Event, policy: PolicyNames | None) -> tuple[str, ...]:
    """``namespace/name`` of what decided: the rule's policy, or for a denial without a rule its isolators there."""
    if policy is None:
        return ()
    if event.rule < len(policy.rules):
        return (policy.rules[event.rule],)
    if event.reason in (DropReason.POLICY_DENIED, DropReason.POLICY_REVOKED) and event.direction in set(Direction):
        return policy.isolating[event.direction]
    return ()


@dataclass(slots=True)
class Budget:
    """A token bucket for the whole node, and what it held back by reason."""

    per_second: float
    burst: float
    tokens: float = 0.0
    last: float = 0.0
    missed: dict[int, int] = field(default_factory=dict)

    def take(self, reason: int, now: float) -> int | None:
        """How many of this reason were held back before, when one may be sent; None when it may not."""
        self.tokens = min(self.burst, self.tokens + (now - self.last) * self.per_second) if self.last else self.burst
        self.last = now
        if self.tokens < 1:
            self.missed[reason] = self.missed.get(reason, 0) + 1
            return None
        self.tokens -= 1
        return self.missed.pop(reason, 0)
