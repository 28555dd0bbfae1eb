"""Ports of a rule, as a compiled policy needs them.

A rule matches a port by its first bits, so a range (``endPort``) becomes the fewest prefixes that cover exactly it. A
named port stands for the container ports of that name *and* protocol on the pod that is connected to; a name that no
container port has stands for nothing, and a rule of nothing but such names allows nothing: it never widens to any port.
"""

from __future__ import annotations

from collections.abc import Iterable

from proto.identity import NamedPort
from proto.objects import PolicyPort
from proto.policy import PortMatch

MAX_PORT = 65535

ANY_PORT = PortMatch(0, 0, 0)
"""What a rule without ports allows: every port of every protocol, and protocols without ports such as ICMP."""


def cover(first: int, last: int) -> tuple[tuple[int, int], ...]:
    """Fewest (port, bits) prefixes that cover exactly ``first``..``last``; none when the range is empty."""
    if not 0 <= first <= last <= MAX_PORT:
        return ()
    prefixes: list[tuple[int, int]] = []
    while first <= last:
        size = (first & -first) or (MAX_PORT + 1)
        while first + size - 1 > last:
            size >>= 1
        prefixes.append((first, 17 - size.bit_length()))
        first += size
    return tuple(prefixes)


def has_names(ports: Iterable[PolicyPort]) -> bool:
    """Whether any of the ports is named, so that what it means depends on the pod that is connected to."""
    return any(port.port_name is not None for port in ports)


def names_of(ports: Iterable[PolicyPort]) -> frozenset[tuple[str, int]]:
    """Name and protocol of each named port that means something (endPort or a number beside a name do not)."""
    return frozenset(
        (port.port_name, port.protocol)
        for port in ports
        if port.port_name is not None and port.port is None and port.end_port is None
    )


def resolve(ports: tuple[PolicyPort, ...], named: tuple[NamedPort, ...]) -> tuple[PortMatch, ...]:
    """What the ports of one rule match on a destination that has the container ports ``named``."""
    if not ports:
        return (ANY_PORT,)
    matches: dict[PortMatch, None] = {}
    for port in ports:
        for match in _resolve_one(port, named):
            matches[match] = None
    return tuple(matches)


def _resolve_one(port: PolicyPort, named: tuple[NamedPort, ...]) -> list[PortMatch]:
    if port.port_name is not None:
        # endPort with a name, or a name beside a number, is refused by the API: here it allows nothing.
        if port.port is not None or port.end_port is not None:
            return []
        return [
            PortMatch(port.protocol, own.port, 16)
            for own in named
            if own.name == port.port_name and own.protocol == port.protocol
        ]
    if port.port is None:
        return [PortMatch(port.protocol, 0, 0)] if port.end_port is None else []
    last = port.port if port.end_port is None else port.end_port
    return [PortMatch(port.protocol, first, bits) for first, bits in cover(port.port, last)]
