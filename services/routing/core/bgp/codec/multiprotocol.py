"""MP_REACH_NLRI and MP_UNREACH_NLRI: where they are among a message's attributes, and their next hops (RFC 4760)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address

from services.routing.core.bgp.codec.attributes import (
    EXTENDED_LENGTH,
    MP_REACH,
    MP_UNREACH,
    NON_TRANSITIVE,
    Flaw,
    NextHops,
    ipv4_next_hop,
    name,
)
from services.routing.core.bgp.codec.errors import ErrorCode, Malformed, MessageError, UpdateError
from services.routing.core.bgp.codec.families import FAMILIES
from services.routing.core.bgp.values import AttributeFault, Family


@dataclass(frozen=True, slots=True)
class Field:
    """One of both attributes."""

    code: int
    octets: bytes
    """Flags, type code and length included."""
    value: bytes

    @property
    def flaw(self) -> Flaw | None:
        """What is wrong with its flags."""
        mask, wanted = NON_TRANSITIVE
        if self.octets[0] & mask == wanted:
            return None
        reason = f"{name(self.code)} has the flags 0x{self.octets[0]:02x}"
        return Flaw(AttributeFault(self.code, reason, withdrawn=True), UpdateError.ATTRIBUTE_FLAGS, self.octets)

    @property
    def family(self) -> Family | None:
        """Its family, if it is one that is carried."""
        return FAMILIES.get(self.value[:3])

    @property
    def family_number(self) -> str:
        """Its family as a person reads it."""
        return f"AFI {int.from_bytes(self.value[:2])}, SAFI {self.value[2]}"

    def malformed(self, reason: str, subcode: UpdateError = UpdateError.OPTIONAL_ATTRIBUTE) -> MessageError:
        """What ends the session (RFC 7606 7.11 and 7.12)."""
        return MessageError(ErrorCode.UPDATE, subcode, f"{name(self.code)} {reason}", self.octets)


def cut_out(octets: bytes) -> tuple[dict[int, Field], bytes]:
    """The multiprotocol attributes among all, by type code, and the others as they stand.

    They are not looked for after an attribute that is longer than all: where it ends nobody knows. Raises
    ``MessageError`` 3/1 where one is there twice (RFC 7606 3 g).
    """
    if MP_REACH not in octets and MP_UNREACH not in octets:
        return {}, octets
    fields: dict[int, Field] = {}
    rest = b""
    at = kept = 0
    stop = len(octets)
    while at < stop:
        begun = at + (4 if octets[at] & EXTENDED_LENGTH else 3)
        if begun > stop:
            break
        end = begun + (octets[begun - 1] if begun == at + 3 else octets[begun - 2] << 8 | octets[begun - 1])
        if end > stop:
            break
        if (code := octets[at + 1]) in (MP_REACH, MP_UNREACH):
            field = Field(code, octets[at:end], octets[begun:end])
            if code in fields:
                raise field.malformed("is there twice", UpdateError.MALFORMED_ATTRIBUTE_LIST)
            fields[code] = field
            rest += octets[kept:at]
            kept = end
        at = end
    return fields, rest + octets[kept:]


def has_multiprotocol(octets: bytes) -> bool:
    """One of both is among the attributes, as far as they can be told from each other; True where they cannot."""
    if MP_REACH not in octets and MP_UNREACH not in octets:
        return False
    at, stop = 0, len(octets)
    while at + 3 <= stop:
        if octets[at + 1] in (MP_REACH, MP_UNREACH):
            return True
        if not octets[at] & EXTENDED_LENGTH:
            at += 3 + octets[at + 2]
        elif at + 4 <= stop:
            at += 4 + (octets[at + 2] << 8 | octets[at + 3])
        else:
            break
    return at != stop


def _ipv6_next_hop(value: bytes) -> IPv6Address:
    address = IPv6Address(value)
    if address.is_multicast or address.is_loopback or address.is_unspecified:
        raise Malformed(UpdateError.INVALID_NEXT_HOP, f"the next hop {address} is no host's address")
    return address


@lru_cache(4096)
def next_hops(value: bytes) -> NextHops:
    """Next hops of 4, 16 or 32 octets (RFC 4760, RFC 2545, RFC 8950). Raises ``Malformed`` for no host's address.

    A sender that has link-local addresses alone puts zeros or the same address where the global one would be.
    """
    if len(value) == 4:
        return ipv4_next_hop(value), None
    link_local = IPv6Address(value[16:]) if len(value) == 32 else None
    if link_local is None or not link_local.is_link_local:
        return _ipv6_next_hop(value[:16]), None
    return (link_local if value[:16] == bytes(16) else _ipv6_next_hop(value[:16])), link_local
