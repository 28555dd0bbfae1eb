"""Prefixes in UPDATE messages (RFC 4271 4.3, RFC 4760 5), with path identifiers where ADD-PATH is in use (RFC 7911 3).

A prefix is cut out as it stands and no object is made of it; bits past its length are set to zero, since senders may
leave anything there. A length that no address of the family has makes it unclear where the next prefix begins, and ends
the session (RFC 7606 5.3).
"""

from __future__ import annotations

from collections.abc import Iterable

from services.routing.core.bgp.codec.errors import ErrorCode, MessageError, UpdateError
from services.routing.core.bgp.values import PathId, Prefix

LONGEST_ENTRY = 4 + 17
"""Octets of the longest prefix with its path identifier."""
OCTETS = tuple(1 + (length + 7) // 8 for length in range(129))
"""Octets of a prefix, by its length in bits."""
PAST = tuple(0xFF >> (length & 7) if length & 7 else 0 for length in range(129))
"""Bits of the last octet that are past the length."""


def _invalid(reason: str) -> MessageError:
    return MessageError(ErrorCode.UPDATE, UpdateError.INVALID_NETWORK, reason)


def read_prefixes(raw: bytes, at: int, stop: int, bits: int) -> tuple[Prefix, ...]:
    """The prefixes from ``at`` to ``stop``, of addresses of so many bits. Raises ``MessageError`` 3/10."""
    found: list[Prefix] = []
    append = found.append
    while at < stop:
        length = raw[at]
        if length > bits:
            raise _invalid(f"a prefix of {length} bits is longer than its address of {bits}")
        end = at + OCTETS[length]
        if end > stop:
            raise _invalid("the last prefix is longer than its field")
        if raw[end - 1] & PAST[length]:
            append(raw[at : end - 1] + bytes((raw[end - 1] & ~PAST[length],)))
        else:
            append(raw[at:end])
        at = end
    return tuple(found)


def read_paths(raw: bytes, at: int, stop: int, bits: int) -> tuple[tuple[Prefix, ...], tuple[PathId, ...]]:
    """Prefixes and path identifiers from ``at`` to ``stop``. Raises ``MessageError`` 3/10."""
    found: list[Prefix] = []
    identifiers: list[PathId] = []
    while at < stop:
        if stop - at < 5:
            raise _invalid("the last path identifier or its prefix is longer than its field")
        identifiers.append(int.from_bytes(raw[at : at + 4]))
        length = raw[at + 4]
        end = at + 4 + (OCTETS[length] if length <= bits else 1)
        found += read_prefixes(raw, at + 4, min(end, stop), bits)
        at = end
    return tuple(found), tuple(identifiers)


def write_prefixes(prefixes: Iterable[Prefix], path_ids: Iterable[PathId] | None, room: int) -> list[bytes]:
    """The prefixes in as few fields as hold them, of ``room`` octets each; with identifiers where there are some.

    ``room`` is at least ``LONGEST_ENTRY``.
    """
    entries = list(prefixes)
    if path_ids is not None:
        pairs = zip(path_ids, entries, strict=True)
        entries = [path_id.to_bytes(4) + prefix for path_id, prefix in pairs]
    fields: list[bytes] = []
    begun = size = 0
    for index, entry in enumerate(entries):
        size += len(entry)
        if size > room:
            fields.append(b"".join(entries[begun:index]))
            begun, size = index, len(entry)
    if begun < len(entries):
        fields.append(b"".join(entries[begun:]))
    return fields
