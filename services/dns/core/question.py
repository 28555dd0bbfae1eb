"""A DNS question, and what a server answers to it: as much of the format as asking a server whether it works takes.

One question, recursion desired, no EDNS. Of an answer only the header is read, and whether it is to this question. A
truncated answer is an answer. Bytes that are no answer are told as such.

Source: RFC 1035 4.1.1 (header), 4.1.2 (question); RFC 6895 2.3 (response codes).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

_HEADER = struct.Struct("!6H")
_RECURSION_DESIRED, _RESPONSE, _CODE = 0x0100, 0x8000, 0x000F
_IN = 1
A, NS = 1, 2
PORT = 53
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


def name_of_api(domain: str) -> str:
    """The Service that every cluster has."""
    return f"kubernetes.default.svc.{domain}"


def question(name: str, number: int, kind: int = A) -> bytes:
    """One question. ``number``: the message's identifier, 0 to 65535; ``name``: with or without the dot at its end,
    which alone is the root. Raises ValueError for a name that is none (RFC 1035 2.3.4).
    """
    labels = [part.encode("ascii") for part in name.rstrip(".").split(".")] if name.rstrip(".") else []
    if any(not 0 < len(label) < 64 for label in labels) or len(name) > 253:
        raise ValueError(f"{name!r} is no domain name")
    asked = b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
    return _HEADER.pack(number, _RECURSION_DESIRED, 1, 0, 0, 0) + asked + struct.pack("!2H", kind, _IN)


def answer(asked: bytes, message: bytes, milliseconds: float) -> Answer | None:
    """What a message answers to this question; None for a message that is no answer to it. One that leaves the question
    out, as some refusals do, is one.
    """
    if len(message) < _HEADER.size:
        return None
    number, flags, questions, records, _, _ = _HEADER.unpack_from(message)
    if not flags & _RESPONSE or number != _HEADER.unpack_from(asked)[0] or questions > 1:
        return None
    if questions and not _repeats(asked, message):
        return None
    code = flags & _CODE
    return Answer(RCODES.get(code, str(code)), records, milliseconds)


def is_answered(asked: bytes, message: bytes) -> bool:
    """Whether a message says NOERROR to exactly this question."""
    found = answer(asked, message, 0.0)
    return found is not None and found.rcode == "NOERROR" and _repeats(asked, message)


def _repeats(asked: bytes, message: bytes) -> bool:
    """Whether the question stands in the message, in whatever case (RFC 4343)."""
    return message[_HEADER.size : len(asked)].lower() == asked[_HEADER.size :].lower()
