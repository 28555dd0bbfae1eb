"""A DNS question about the cluster, and whether an answer is one to it.

Owns the few bytes of the format that a check needs: a header and one question out, a header and that question back.
A truncated answer is an answer. Refuses nothing: bytes that are no answer are told as such.

Source: RFC 1035 4.1.1 (header), 4.1.2 (question); RFC 6895 2.3 (response codes).
"""

from __future__ import annotations

import struct

_HEADER = struct.Struct("!6H")
_RECURSION_DESIRED, _RESPONSE, _CODE = 0x0100, 0x8000, 0x000F
_IN = 1
A = 1
PORT = 53


def name_of_api(domain: str) -> str:
    """The Service that every cluster has."""
    return f"kubernetes.default.svc.{domain}."


def question(name: str, number: int, kind: int = A) -> bytes:
    """One question. ``number``: the message's identifier, 0 to 65535; ``name``: labels of 63 bytes at most."""
    labels = b"".join(bytes((len(label),)) + label.encode() for label in name.rstrip(".").split("."))
    return _HEADER.pack(number, _RECURSION_DESIRED, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", kind, _IN)


def is_answered(asked: bytes, answer: bytes) -> bool:
    """Whether ``answer`` says NOERROR to exactly this question."""
    if len(answer) < len(asked):
        return False
    number, flags, questions, *_ = _HEADER.unpack_from(answer)
    same = answer[_HEADER.size : len(asked)].lower() == asked[_HEADER.size :].lower()
    is_first = number == _HEADER.unpack_from(asked)[0] and questions == 1
    return is_first and same and bool(flags & _RESPONSE) and not flags & _CODE
