"""BGP messages as a person writes them down: in hexadecimal digits, or put together part by part.

Nothing of the codec is used, so that what it writes and reads can be compared with something else.
"""

from __future__ import annotations

from collections.abc import Iterable

MARKER = b"\xff" * 16
WELL_KNOWN, OPTIONAL, NON_TRANSITIVE = 0x40, 0xC0, 0x80
"""Flags of attributes: well-known ones, optional transitive ones, optional non-transitive ones."""


def octets(text: str) -> bytes:
    """Hexadecimal digits; what follows ``#`` in a row is a comment."""
    return bytes.fromhex(" ".join(row.split("#")[0] for row in text.splitlines()))


def message(kind: int, body: bytes) -> bytes:
    return MARKER + (19 + len(body)).to_bytes(2, "big") + bytes((kind,)) + body


def attribute(flags: int, code: int, value: bytes | str, *, extended: bool | None = None) -> bytes:
    """An attribute; ``extended`` (two octets of length) where the value needs it, or as asked."""
    value = octets(value) if isinstance(value, str) else value
    if extended or (extended is None and len(value) > 255):
        return bytes((flags | 0x10, code)) + len(value).to_bytes(2, "big") + value
    return bytes((flags, code, len(value))) + value


def prefix(text: str) -> bytes:
    """``10.1.0.0/16`` or ``2001:db8::/32``, as it stands in an UPDATE."""
    address, length = text.split("/")
    packed = bytes(map(int, address.split("."))) if "." in address else ipv6(address)
    return bytes((int(length),)) + packed[: (int(length) + 7) // 8]


def ipv6(text: str) -> bytes:
    head, _, tail = text.partition("::")
    before = [int(one, 16) for one in head.split(":") if one]
    after = [int(one, 16) for one in tail.split(":") if one]
    words = before + [0] * (8 - len(before) - len(after)) + after if "::" in text else before
    return b"".join(one.to_bytes(2, "big") for one in words)


def prefixes(text: str) -> bytes:
    return b"".join(map(prefix, text.split()))


def update(
    attributes: Iterable[bytes] = (), reachable: str | bytes = "", withdrawn: str | bytes = "", *, header: bool = False
) -> bytes:
    """The body of an UPDATE, or the whole message."""
    taken = prefixes(withdrawn) if isinstance(withdrawn, str) else withdrawn
    given = prefixes(reachable) if isinstance(reachable, str) else reachable
    path = b"".join(attributes)
    body = len(taken).to_bytes(2, "big") + taken + len(path).to_bytes(2, "big") + path + given
    return message(2, body) if header else body


def as_path(*numbers: int, kind: int = 2, width: int = 4) -> bytes:
    """The value of an AS_PATH of one segment; empty without numbers."""
    if not numbers:
        return b""
    return bytes((kind, len(numbers))) + b"".join(one.to_bytes(width, "big") for one in numbers)


def mp_reach(next_hop: bytes, reachable: str | bytes, family: str = "00 02 01", flags: int = NON_TRANSITIVE) -> bytes:
    given = prefixes(reachable) if isinstance(reachable, str) else reachable
    return attribute(flags, 14, octets(family) + bytes((len(next_hop),)) + next_hop + b"\0" + given)


def mp_unreach(withdrawn: str | bytes, family: str = "00 02 01", flags: int = NON_TRANSITIVE) -> bytes:
    taken = prefixes(withdrawn) if isinstance(withdrawn, str) else withdrawn
    return attribute(flags, 15, octets(family) + taken)


ORIGIN = attribute(WELL_KNOWN, 1, "00")
AS_PATH = attribute(WELL_KNOWN, 2, as_path(65001, 65002))
NEXT_HOP = attribute(WELL_KNOWN, 3, "0a 00 00 01")
LOCAL_PREF = attribute(WELL_KNOWN, 5, "00 00 00 64")
GLOBAL = ipv6("2001:db8::1")
LINK_LOCAL = ipv6("fe80::1")
