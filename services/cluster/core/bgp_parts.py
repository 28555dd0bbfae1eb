"""Pieces that the kinds of BGP share: AS numbers, communities, durations, names of Secrets.

Owns their bounds. 0 is no AS number (RFC 7607), and 23456 stands for one that has no room (RFC 6793). Units: seconds.
"""

from __future__ import annotations

import re
from fractions import Fraction

from proto.objects import Community, SecretKey
from services.cluster.core.bgp_shapes import AsnShape, PasswordShape
from services.cluster.core.malformed import Wrong, quote

MOST_ASN = (1 << 32) - 1
AS_TRANS = 23456
_PART = re.compile(r"(\d{1,12}(?:\.\d{0,9})?)(ns|us|µs|ms|s|m|h)")
_NANOSECONDS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}


def asn(written: AsnShape, path: str) -> int:
    """An AS number, as a number or in asdot notation (RFC 5396); raises :class:`Wrong`."""
    number = written if isinstance(written, int) else _asn_of_text(written, path)
    if not 1 <= number <= MOST_ASN or number == AS_TRANS:
        problem = f"{quote(written)} is no AS number that a system can have"
        raise Wrong(path, problem, f'use 1 to {MOST_ASN}, but {AS_TRANS}, e.g. 64512 or "1.10"')
    return number


def _asn_of_text(text: str, path: str) -> int:
    high, dot, low = text.partition(".")
    parts = (high, low) if dot else (high,)
    if not all(part.isascii() and part.isdecimal() and len(part) <= 10 for part in parts):
        raise Wrong(path, f"{quote(text)} is not an AS number", 'write e.g. 64512 or "1.10"')
    if dot and any(int(part) > 0xFFFF for part in parts):
        raise Wrong(
            path, f"{quote(text)} has a part over 65535", 'write it as one number, or as two of 16 bits: "1.10"'
        )
    return (int(high) << 16 | int(low)) if dot else int(high)


def community(text: str, path: str) -> Community:
    """A community of two numbers (RFC 1997) or of three (RFC 8092); raises :class:`Wrong`."""
    parts = text.split(":")
    most = {2: 0xFFFF, 3: MOST_ASN}.get(len(parts), -1)
    if not all(part.isascii() and part.isdecimal() and len(part) <= 10 and int(part) <= most for part in parts):
        remedy = "write e.g. 65000:100, both at most 65535, or 65000:1:2, each of 32 bits"
        raise Wrong(path, f"{quote(text)} is not a community", remedy)
    return tuple(map(int, parts))


def seconds(text: str, path: str, least: int, most: int) -> int:
    """A duration as Go writes it (``90s``, ``1m30s``), to the nearest second; raises :class:`Wrong`."""
    parts = _PART.findall(text)
    if not text or "".join(number + unit for number, unit in parts) != text:
        raise Wrong(path, f"{quote(text)} is not a duration", "write e.g. 90s or 2m")
    found = round(
        sum((Fraction(number.rstrip(".")) * _NANOSECONDS[unit] for number, unit in parts), Fraction()) / 10**9
    )
    if not least <= found <= most:
        raise Wrong(path, f"{quote(text)} is out of range", f"use {least}s to {most}s")
    return found


def secret_key(shape: PasswordShape | None, path: str) -> SecretKey | None:
    """Where a password stands; raises :class:`Wrong` for one that names no Secret."""
    if shape is None:
        return None
    if shape.secret_key_ref is None:
        raise Wrong(f"{path}.secretKeyRef", "is missing", "name the Secret and the key of it that has the password")
    return SecretKey(name=shape.secret_key_ref.name, key=shape.secret_key_ref.key)
