"""Bounds on what one identity may cost, and what is said when one is passed.

A compiled policy travels as one value of the bus and lives in every kernel that hosts such a pod, so its size is
bounded. Past a bound it is never cut short: a policy with some of its lines missing is a policy nobody wrote. The
direction becomes deny-all and the fault is reported, naming the policies to change.
"""

from __future__ import annotations

from dataclasses import dataclass

from proto.policy import CompiledRule, RuleSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one compiled policy."""

    lines: int = 4096
    """Most lines of one identity in one direction."""
    size: int = 900_000
    """Most bytes of one identity's value, estimated from above; the bus takes 1 MiB (``proto.codec.MAX_VALUE``)."""
    policy_prefixes: int = 1_000
    """Most CIDRs and exceptions, as written, that one NetworkPolicy may name."""
    namespace_prefixes: int = 4_000
    """Most of all policies of a namespace: its partition is one value of the bus."""
    prefixes: int = 100_000
    """Most of all namespaces: each node has room for twice as many."""
    memberships: int = 100_000
    """Most pairs of a CIDR set and a rule in it, of one namespace: what overlapping rules cost."""


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """Something a person should know: one sentence, and what to do about it."""

    fault: str
    remedy: str
    namespace: str = ""
    """Where the fault is; empty for one that no namespace alone is to blame for."""
    policy: str = ""
    """The NetworkPolicy to change; empty when it is not one of them."""


# Measured on the wire's form (a map with field names for each line): fixed part of a line and of a source, in bytes.
_LINE = 112
_SOURCE = 56


def estimated_size(rules: tuple[CompiledRule, ...], sources: tuple[RuleSource, ...]) -> int:
    """Upper estimate in bytes of what the lines and their sources take as one value."""
    names = sum(len(source.kind) + len(source.namespace) + len(source.name) for source in sources)
    return 512 + _LINE * len(rules) + _SOURCE * len(sources) + names
