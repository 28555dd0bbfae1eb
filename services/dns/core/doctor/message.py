"""A DNS query and what its answer says: as much of RFC 1035 as asking a server whether it works takes.

One question, recursion desired, no EDNS. Of an answer only the header is read, and whether it is to this question.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

A, NS = 1, 2
_IN = 1
_HEADER = struct.Struct("!6H")
_RECURSION_DESIRED, _RESPONSE = 0x0100, 0x8000
RCODES = {0: "NOERROR", 1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED"}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said."""

    rcode: str
    """``NOERROR``, ``NXDOMAIN``…; the number where it has no name here."""
    records: int
    """Records of the answer section."""
    milliseconds: float = 0.0
    """From the question to it."""


def query(number: int, name: str, kind: int = A) -> bytes:
    """The message that asks; ``number`` is its id. Raises ValueError for a name that is none (RFC 1035 2.3.4)."""
    labels = [part.encode("ascii") for part in name.rstrip(".").split(".")] if name.rstrip(".") else []
    if any(not 0 < len(label) < 64 for label in labels) or len(name) > 253:
        raise ValueError(f"{name!r} is no domain name")
    asked = b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
    return _HEADER.pack(number, _RECURSION_DESIRED, 1, 0, 0, 0) + asked + struct.pack("!2H", kind, _IN)


def answer(asked: bytes, message: bytes, milliseconds: float) -> Answer | None:
    """What a message answers to this query; None for a message that is no answer to it."""
    if len(message) < _HEADER.size:
        return None
    number, flags, questions, records, _, _ = _HEADER.unpack_from(message)
    if not flags & _RESPONSE or number != _HEADER.unpack_from(asked)[0] or questions > 1:
        return None
    question = asked[_HEADER.size :]
    if questions and message[_HEADER.size : _HEADER.size + len(question)].lower() != question.lower():
        return None
    code = flags & 15
    return Answer(RCODES.get(code, str(code)), records, milliseconds)
