"""UPDATE messages (RFC 4271 4.3, RFC 4760): read for one session into what counts of them, and written.

Reading follows RFC 7606. What makes it unclear where a prefix begins ends the session. Of other faults the worst one
decides whether all prefixes of the message are withdrawn or an attribute is left out; where a message has attributes
and no prefix to be withdrawn, the session ends as well (5.2). One set of attributes is read once: a reader keeps what
it made of the octets, without prefixes, up to a bound on memory, and so equal sets are mostly one object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from services.routing.core.bgp.codec.attributes import MESSAGE, MP_REACH, MP_UNREACH, OPTIONAL, Draft, Flaw
from services.routing.core.bgp.codec.encoding import attribute, write_attributes
from services.routing.core.bgp.codec.errors import ErrorCode, Malformed, MessageError, UpdateError, ignored
from services.routing.core.bgp.codec.families import write_family
from services.routing.core.bgp.codec.messages import HEADER, MessageKind, message
from services.routing.core.bgp.codec.multiprotocol import Field, cut_out, has_multiprotocol, next_hops
from services.routing.core.bgp.codec.prefixes import LONGEST_ENTRY, read_paths, read_prefixes, write_prefixes
from services.routing.core.bgp.values import (
    Agreed,
    AttributeFault,
    Attributes,
    Family,
    PathId,
    Prefix,
    Reachable,
    Unreachable,
    Update,
)

IPV4: Final = Family.IPV4
KEPT_OCTETS = 64 << 20
"""Memory that a reader may keep of attribute sets, as estimated: 40,000 usual ones."""
KEPT_ENTRY, KEPT_FACTOR = 600, 16
"""Estimate of one set: so many octets, and for each of its octets in the message so many."""


@dataclass(frozen=True, slots=True)
class Flawed:
    """Attributes with faults, and what is left of them where no fault withdraws."""

    attributes: Attributes
    flaws: tuple[Flaw, ...]


@dataclass(frozen=True, slots=True)
class Unwritable:
    """Attributes that cannot be sent to the peer; the reason is a sentence. Its prefixes are to be withdrawn."""

    reason: str


def _error(subcode: UpdateError, reason: str, content: bytes = b"") -> MessageError:
    return MessageError(ErrorCode.UPDATE, subcode, reason, content)


class Contents:
    """What a message says, while it is read."""

    __slots__ = ("agreed", "flaws", "reachable", "unreachable")

    def __init__(self, agreed: Agreed) -> None:
        self.agreed = agreed
        self.unreachable: list[Unreachable] = []
        self.reachable: list[Reachable] = []
        self.flaws: list[Flaw] = []

    def prefixes(
        self, family: Family, raw: bytes, at: int, code: int = MESSAGE
    ) -> tuple[tuple[Prefix, ...], tuple[PathId, ...]]:
        """Prefixes from ``at`` to the end of ``raw``; none of a family that was not agreed on."""
        if at < len(raw) and family not in self.agreed.families:
            self.foreign(code, family.name)
            return (), ()
        if family in self.agreed.receives_paths:
            return read_paths(raw, at, len(raw), family.bits)
        return read_prefixes(raw, at, len(raw), family.bits), ()

    def foreign(self, code: int, family: str) -> None:
        """Note that prefixes are ignored, whatever stands there (RFC 4760 7)."""
        wrong = ignored(f"prefixes of {family}, which was not agreed on, are ignored")
        self.flaws.append(Flaw(AttributeFault(code, wrong.reason, wrong.withdrawn), wrong.subcode, b""))

    def withdraw(self, family: Family, prefixes: tuple[Prefix, ...], path_ids: tuple[PathId, ...]) -> None:
        """Take prefixes back."""
        if prefixes:
            self.unreachable.append(Unreachable(family=family, prefixes=prefixes, path_ids=path_ids))

    def announce(
        self, family: Family, found: Attributes | Flawed, prefixes: tuple[Prefix, ...], path_ids: tuple[PathId, ...]
    ) -> None:
        """Make prefixes reachable, unless a fault anywhere in the message withdraws them."""
        if isinstance(found, Flawed):
            self.flaws += found.flaws
            found = found.attributes
        self.reachable.append(Reachable(family=family, attributes=found, prefixes=prefixes, path_ids=path_ids))

    def update(self, *, borne: bool) -> Update:
        """All of it. Raises ``MessageError`` for a fault that withdraws, unless it is ``borne``."""
        withdrawing = next((flaw for flaw in self.flaws if flaw.fault.withdrawn), None)
        if withdrawing is not None:
            if not borne:
                raise withdrawing.error()
            for one in self.reachable:
                self.withdraw(one.family, one.prefixes, one.path_ids)
            self.reachable.clear()
        return Update(
            unreachable=tuple(self.unreachable),
            reachable=tuple(self.reachable),
            faults=tuple(dict.fromkeys(flaw.fault for flaw in self.flaws)),
        )


class UpdateReader:
    """Reads the UPDATE messages of one session. Nothing that a message says changes how the next one is read."""

    def __init__(self, agreed: Agreed) -> None:
        self._agreed = agreed
        self._quick = IPV4 in agreed.families and IPV4 not in agreed.receives_paths
        self._sets: dict[bytes, Attributes | Flawed] = {}
        self._multiprotocol_sets: dict[tuple[bytes, bytes], Attributes | Flawed] = {}
        self._room = KEPT_OCTETS

    def read(self, body: bytes | memoryview) -> Update:
        """What an UPDATE says, from its body without header. Raises ``MessageError`` 3/x, which ends the session."""
        raw = bytes(body)
        size = len(raw)
        if size < 4:
            raise _error(UpdateError.MALFORMED_ATTRIBUTE_LIST, "the message ends before its attributes")
        withdrawn = 2 + (raw[0] << 8 | raw[1])
        begun = withdrawn + 2
        if begun > size:
            raise _error(UpdateError.MALFORMED_ATTRIBUTE_LIST, "the withdrawn routes are longer than the message")
        end = begun + (raw[withdrawn] << 8 | raw[withdrawn + 1])
        if end > size:
            raise _error(UpdateError.MALFORMED_ATTRIBUTE_LIST, "the attributes are longer than the message")
        octets = raw[begun:end]
        if withdrawn == 2 and end < size and self._quick:  # prefixes of IPv4 alone: most of what large tables are
            found = self._sets.get(octets)
            if found is None and not has_multiprotocol(octets):
                found = self._new_set(octets)
            if type(found) is Attributes:
                prefixes = read_prefixes(raw, end, size, 32)
                return Update(reachable=(Reachable(family=IPV4, attributes=found, prefixes=prefixes),))
        return self._whole(raw[2:withdrawn], octets, raw[end:])

    def _whole(self, withdrawn: bytes, octets: bytes, plain: bytes) -> Update:
        """Withdrawn routes, attributes and the prefixes after them, whatever they hold."""
        if not withdrawn and not octets and not plain:
            return Update(end_of_rib=IPV4)
        fields, rest = cut_out(octets)
        contents = Contents(self._agreed)
        contents.withdraw(IPV4, *contents.prefixes(IPV4, withdrawn, 0))
        reach, unreach = fields.get(MP_REACH), fields.get(MP_UNREACH)
        if unreach is not None:
            ended = self._unreach(contents, unreach)
            if ended is not None and not withdrawn and not plain and len(fields) == 1 and not rest:
                return Update(end_of_rib=ended)
        prefixes, path_ids = contents.prefixes(IPV4, plain, 0)
        if prefixes:
            contents.announce(IPV4, self._set(rest), prefixes, path_ids)
        given = bool(plain)
        if reach is not None:
            given |= self._reach(contents, reach, rest)
        if rest and not contents.reachable:
            draft = self._draft(multiprotocol=reach is not None)
            draft.read(rest)
            contents.flaws += draft.flaws.values()
        # Without reachable prefixes nobody can be sure that all were seen; withdrawals alone need no attributes.
        return contents.update(borne=given or (reach is None and not rest))

    def _unreach(self, contents: Contents, field: Field) -> Family | None:
        """Read MP_UNREACH_NLRI; a family where it names one that was agreed on, and no prefixes (RFC 4724 2)."""
        if len(field.value) < 3:
            raise field.malformed(f"has {len(field.value)} octets, and 3 at least are needed")
        family, flaw = field.family, field.flaw
        if flaw is not None:
            contents.flaws.append(flaw)
        if family is None:
            contents.foreign(field.code, field.family_number)
            return None
        contents.withdraw(family, *contents.prefixes(family, field.value, 3, field.code))
        ended = len(field.value) == 3 and flaw is None and family in self._agreed.families
        return family if ended else None

    def _reach(self, contents: Contents, field: Field, rest: bytes) -> bool:
        """Read MP_REACH_NLRI, with all other attributes; whether there are prefixes in it."""
        value = field.value
        if len(value) < 5 or 5 + value[3] > len(value):
            raise field.malformed("ends before its prefixes")
        family = field.family
        if family is None or family not in self._agreed.families:
            contents.foreign(field.code, field.family_number)
            return True
        if value[3] not in self._next_hop_sizes(family):
            raise field.malformed(f"has a next hop of {value[3]} octets")
        if (flaw := field.flaw) is not None:
            contents.flaws.append(flaw)
        prefixes, path_ids = contents.prefixes(family, value, 5 + value[3], field.code)
        if prefixes:
            contents.announce(family, self._multiprotocol_set(rest, value[4 : 4 + value[3]]), prefixes, path_ids)
        return bool(prefixes)

    def _next_hop_sizes(self, family: Family) -> tuple[int, ...]:
        """Octets that a next hop of the family may have (RFC 4760, RFC 2545, RFC 8950)."""
        if family is not IPV4:
            return 16, 32
        return (4, 16, 32) if family in self._agreed.extended_next_hops else (4,)

    def _draft(self, *, multiprotocol: bool) -> Draft:
        agreed = self._agreed
        return Draft(four_octets=agreed.four_octets, external=agreed.external, multiprotocol=multiprotocol)

    def _set(self, octets: bytes) -> Attributes | Flawed:
        """The attributes of prefixes at the end of a message."""
        return self._sets.get(octets) or self._new_set(octets)

    def _new_set(self, octets: bytes) -> Attributes | Flawed:
        found = self._decode(octets, None)
        self._make_room(octets)
        self._sets[octets] = found
        return found

    def _multiprotocol_set(self, octets: bytes, next_hop: bytes) -> Attributes | Flawed:
        """The attributes of prefixes in MP_REACH_NLRI, whose next hop is there too."""
        key = (octets, next_hop)
        found = self._multiprotocol_sets.get(key)
        if found is None:
            found = self._decode(octets, next_hop)
            self._make_room(octets)
            self._multiprotocol_sets[key] = found
        return found

    def _decode(self, octets: bytes, next_hop: bytes | None) -> Attributes | Flawed:
        draft = self._draft(multiprotocol=next_hop is not None)
        draft.read(octets)
        draft.require()
        hops = None
        if next_hop is not None:
            try:
                hops = next_hops(next_hop)
            except Malformed as wrong:
                draft.fault(MP_REACH, next_hop, wrong)
        attributes = draft.attributes(hops)
        return Flawed(attributes, tuple(draft.flaws.values())) if draft.flaws else attributes

    def _make_room(self, octets: bytes) -> None:
        """Count one more set, and forget all of them when they are too many."""
        cost = KEPT_ENTRY + KEPT_FACTOR * len(octets)
        self._room -= cost
        if self._room < 0:
            self._sets.clear()
            self._multiprotocol_sets.clear()
            self._room = KEPT_OCTETS - cost


class UpdateWriter:
    """Writes UPDATE messages for one session, or for all that agreed on the same."""

    def __init__(self, agreed: Agreed) -> None:
        self._agreed = agreed

    def write(
        self, family: Family, attributes: Attributes, prefixes: Sequence[Prefix], path_ids: Sequence[PathId] = ()
    ) -> list[bytes] | Unwritable:
        """Messages that make the prefixes reachable, as few as hold them.

        ``path_ids`` has one for each prefix, and counts where the peer takes them; empty: 0 for all.
        """
        try:
            return self._write(family, attributes, prefixes, path_ids)
        except OverflowError:
            return Unwritable("an attribute has a value that its octets do not hold")

    def _write(
        self, family: Family, attributes: Attributes, prefixes: Sequence[Prefix], path_ids: Sequence[PathId]
    ) -> list[bytes] | Unwritable:
        next_hop = attributes.next_hop
        if next_hop is None:
            return Unwritable("the attributes have no next hop")
        four_octets = self._agreed.four_octets
        if family is IPV4 and next_hop.version == 4:
            head = b""
            octets = write_attributes(attributes, four_octets=four_octets, next_hop=next_hop.packed)
        elif next_hop.version == 4 or (family is IPV4 and IPV4 not in self._agreed.extended_next_hops):
            return Unwritable(f"the peer takes no next hop like {next_hop} for {family.name}")
        else:
            hops = next_hop.packed + (attributes.link_local.packed if attributes.link_local is not None else b"")
            head = write_family(family) + bytes((len(hops),)) + hops + b"\0"
            octets = write_attributes(attributes, four_octets=four_octets, next_hop=None)
        room = self._room(len(octets) + (4 + len(head) if head else 0))
        if room < LONGEST_ENTRY:
            reason = f"the attributes take {len(octets)} octets, too many for {self._agreed.largest_message}"
            return Unwritable(reason)
        fields = write_prefixes(prefixes, self._identifiers(family, prefixes, path_ids), room)
        if head:
            return [_update(b"", attribute(OPTIONAL, MP_REACH, head + field) + octets) for field in fields]
        return [_update(b"", octets, field) for field in fields]

    def withdraw(self, family: Family, prefixes: Sequence[Prefix], path_ids: Sequence[PathId] = ()) -> list[bytes]:
        """Messages that take the prefixes back, as few as hold them; ``path_ids`` as in ``write``."""
        identifiers = self._identifiers(family, prefixes, path_ids)
        if family is IPV4:
            return [_update(field, b"") for field in write_prefixes(prefixes, identifiers, self._room(0))]
        fields = write_prefixes(prefixes, identifiers, self._room(7))
        return [_update(b"", attribute(OPTIONAL, MP_UNREACH, write_family(family) + field)) for field in fields]

    def end_of_rib(self, family: Family) -> bytes:
        """The message that says that all routes of the family have been sent (RFC 4724 2)."""
        if family is IPV4:
            return _update(b"", b"")
        return _update(b"", attribute(OPTIONAL, MP_UNREACH, write_family(family)))

    def _room(self, taken: int) -> int:
        """Octets for prefixes in a message, where attributes take so many."""
        return self._agreed.largest_message - HEADER - 4 - taken

    def _identifiers(
        self, family: Family, prefixes: Sequence[Prefix], path_ids: Sequence[PathId]
    ) -> Sequence[PathId] | None:
        if family not in self._agreed.sends_paths:
            return None
        return path_ids or (0,) * len(prefixes)


def _update(withdrawn: bytes, octets: bytes, prefixes: bytes = b"") -> bytes:
    body = len(withdrawn).to_bytes(2) + withdrawn + len(octets).to_bytes(2) + octets + prefixes
    return message(MessageKind.UPDATE, body)
