"""Small texts of reports: times, sizes, ports, identities as a person reads them.

Pure; every function gives one text for one value and never fails.
"""

from __future__ import annotations

import re

from proto.identity import FIRST_COMPUTED, Reserved
from proto.net import Address, host_port
from proto.objects import Labels, Owner

PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp"}
"""IANA protocol numbers to the names people type."""


_UNSEEN = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but the tab, line separators, marks of direction, and halves of characters."""


def printable(raw: str) -> str:
    r"""Text as others told it, safe for a terminal: what moves the cursor, ends or turns the line is spelled \x1b."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), raw)


def ago(seconds: float) -> str:
    """A span of time, two units at most: `42 s`, `3 min 10 s`, `2 h 5 min`, `9 d 3 h`."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def size(count: int) -> str:
    """Bytes with one decimal: `48.3 MiB`."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"


def protocol(number: int) -> str:
    """`tcp`, `udp`, … or the number."""
    return PROTOCOLS.get(number, str(number))


def socket(address: Address, port: int) -> str:
    """`10.0.0.1:80` or `[fd00::1]:80`; without a port for protocols that have none."""
    if not port:
        return str(address)
    return host_port(address, port)


def identity(number: int) -> str:
    """16 hex digits, or the name of a reserved one."""
    if number < FIRST_COMPUTED:
        try:
            return Reserved(number).name.lower().replace("_", "-")
        except ValueError:
            return f"reserved-{number}"
    return f"{number:016x}"


def labels(pairs: Labels) -> str:
    """`app=web, tier=front`."""
    return ", ".join(f"{key}={value}" for key, value in pairs)


def owner(whose: Owner) -> str:
    """`prod/StatefulSet/db/0`; the ordinal only where there is one."""
    text = f"{whose.namespace}/{whose.kind}/{whose.name}"
    return text if whose.ordinal < 0 else f"{text}/{whose.ordinal}"
