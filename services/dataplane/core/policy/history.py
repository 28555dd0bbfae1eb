"""Policy names by generation: which policy decided a flow event of the datapath.

A subject's entry names its policy by a number of its content (``number_of``), and each event says which number judged;
so an event that comes after an edit is told by the policy that decided, and one whose policy is not known any more
names none. Bounded: a policy that is neither wanted nor in force is remembered for :data:`LINGER` seconds, which covers
an event's way through the ring buffer, and no identity keeps more than :data:`MOST` of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from sys import intern

import msgspec

from proto.policy import CompiledPolicy, Direction, RuleSource

LINGER = 30.0
MOST = 8
_encode = msgspec.msgpack.Encoder(order="deterministic").encode


def number_of(policy: CompiledPolicy) -> int:
    """32 bits that name a policy among those of its identity; never 0."""
    return int.from_bytes(blake2b(_encode(policy), digest_size=4).digest(), "big") or 1


@dataclass(frozen=True, slots=True)
class PolicyNames:
    """A compiled policy as a person knows it: each policy as ``namespace/name``."""

    revision: str
    """``<epoch>:<sequence>``."""
    rules: tuple[str, ...]
    """By number of the rule."""
    isolating: tuple[tuple[str, ...], tuple[str, ...]]
    """By direction."""


def names_of(policy: CompiledPolicy) -> PolicyNames:
    """The names in a policy."""
    return PolicyNames(
        revision=policy.revision.text,
        rules=tuple(_name(source) for source in policy.sources),
        isolating=(_isolating(policy, Direction.INGRESS), _isolating(policy, Direction.EGRESS)),
    )


def _isolating(policy: CompiledPolicy, direction: Direction) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_name(source) for source in policy.isolated_by if source.index == -1 - direction))


def _name(source: RuleSource) -> str:
    return intern(f"{source.namespace}/{source.name}")


@dataclass(slots=True)
class _Kept:
    names: PolicyNames
    since: float | None = None
    """When it was first seen to be neither wanted nor in force."""


class PolicyHistory:
    """Names by identity and number. Times are seconds of one clock."""

    def __init__(self) -> None:
        self._kept: dict[int, dict[int, _Kept]] = {}

    def __len__(self) -> int:
        """Policies that are remembered."""
        return sum(len(mine) for mine in self._kept.values())

    def learn(self, policy: CompiledPolicy, number: int, in_force: int) -> None:
        """A policy is about to be enforced; ``in_force``: the number that its subject has now."""
        mine = self._kept.setdefault(policy.identity, {})
        if number not in mine:
            mine[number] = _Kept(names_of(policy))
        for oldest in [one for one in mine if one not in (number, in_force)][: max(0, len(mine) - MOST)]:
            del mine[oldest]

    def expire(self, live: Mapping[int, Iterable[int]], now: float) -> None:
        """Forgets what no event can be about. ``live``: numbers that are wanted or in force, by identity."""
        for identity, mine in list(self._kept.items()):
            for number, one in list(mine.items()):
                if number in live.get(identity, ()):
                    one.since = None
                elif one.since is None:
                    one.since = now
                elif now - one.since > LINGER:
                    del mine[number]
            if not mine:
                del self._kept[identity]

    def names(self, identity: int, number: int) -> PolicyNames | None:
        """What a policy was called; None when nobody knows (any more)."""
        found = self._kept.get(identity, {}).get(number)
        return found.names if found is not None else None
