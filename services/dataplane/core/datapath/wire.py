"""How a record of ours lies in a kernel map: one declaration, from which Python packs and the C struct is written.

Owns the field kinds (``U32``, ``Addr``, …) and :class:`Record`, the base of every key and value in
``services.dataplane.core.datapath.layout``. A record is a frozen dataclass whose fields are annotated with these kinds;
offsets follow the C ABI of x86-64 and arm64 (natural alignment, little endian), and every hole becomes a *named*
padding member of the C struct, because a map key with an uninitialised hole is a different key each time (clang leaves
holes alone).

Promises: ``unpack(pack(r)) == r``; refuses values that do not fit with a ``ValueError`` naming record and field.
Units: sizes and offsets in bytes. Ports are integers here and big endian there; IPv4 addresses are ``::ffff:a.b.c.d``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from ipaddress import IPv4Address, IPv6Address
from typing import Annotated, Any, Self, TypeAlias, get_type_hints

Address: TypeAlias = IPv4Address | IPv6Address

MAPPED = bytes(10) + b"\xff\xff"
"""First 12 bytes of an IPv4-mapped IPv6 address (RFC 4291, 2.5.5.2)."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of field: its C type, its ``struct`` code, and the way there and back."""

    c_type: str
    code: str
    size: int
    align: int
    encode: Callable[[Any], Any] = lambda value: value
    decode: Callable[[Any], Any] = lambda value: value
    length: int = 0
    """Elements, where the C member is an array."""


def address_bytes(address: Address) -> bytes:
    """The 16 bytes that stand for an address in every map: IPv4 is mapped."""
    return MAPPED + address.packed if address.version == 4 else address.packed


def address_from(raw: bytes) -> Address:
    """The address that 16 bytes stand for; the inverse of :func:`address_bytes`."""
    return IPv4Address(raw[12:]) if raw[:12] == MAPPED else IPv6Address(raw)


def _optional_bytes(address: Address | None) -> bytes:
    return bytes(16) if address is None else address_bytes(address)


def _optional_from(raw: bytes) -> Address | None:
    return None if raw == bytes(16) else address_from(raw)


def _mac_bytes(mac: bytes) -> bytes:
    if len(mac) != 6:
        raise ValueError(f"a MAC address has 6 bytes, not {len(mac)}")
    return mac


def _swap16(port: int) -> int:
    return (port & 0xFF) << 8 | port >> 8


def _vector_bytes(bits: int) -> bytes:
    return bits.to_bytes(32, "little")


def _vector_from(raw: bytes) -> int:
    return int.from_bytes(raw, "little")


def _counts_kind(count: int) -> Kind:
    def encode(counts: Iterable[int]) -> bytes:
        return struct.pack(f"<{count}Q", *counts)

    def decode(raw: bytes) -> tuple[int, ...]:
        return struct.unpack(f"<{count}Q", raw)

    return Kind("u64", f"{8 * count}s", 8 * count, 8, encode, decode, length=count)


def _zero(_: object) -> int:
    return 0


_ADDRESS = Kind("struct am_addr", "16s", 16, 4, address_bytes, address_from)
_OPTIONAL = Kind("struct am_addr", "16s", 16, 4, _optional_bytes, _optional_from)

U8: TypeAlias = Annotated[int, Kind("u8", "B", 1, 1)]
U16: TypeAlias = Annotated[int, Kind("u16", "H", 2, 2)]
U32: TypeAlias = Annotated[int, Kind("u32", "I", 4, 4)]
U64: TypeAlias = Annotated[int, Kind("u64", "Q", 8, 8)]
Flag: TypeAlias = Annotated[bool, Kind("u8", "B", 1, 1, int, bool)]
Port: TypeAlias = Annotated[int, Kind("__be16", "H", 2, 2, _swap16, _swap16)]
Addr: TypeAlias = Annotated[Address, _ADDRESS]
MaybeAddr: TypeAlias = Annotated[Address | None, _OPTIONAL]
Mac: TypeAlias = Annotated[bytes, Kind("u8", "6s", 6, 1, _mac_bytes, bytes, length=6)]
Hole1: TypeAlias = Annotated[int, Kind("u8", "B", 1, 1, _zero, _zero)]
"""A byte that is always zero: where a layout wants the next field further on than alignment would put it."""
Bits256: TypeAlias = Annotated[int, Kind("u64", "32s", 32, 8, _vector_bytes, _vector_from, length=4)]
"""A vector of 256 bits, as one integer here: bit j is bit j % 64 of word j / 64."""
NamespaceHash: TypeAlias = Annotated[bytes, Kind("u8", "8s", 8, 1, bytes, bytes, length=8)]
"""Eight bytes that a trie compares as they stand: which namespace's entries these are; all zero = nobody's."""
Counts216: TypeAlias = Annotated[tuple[int, ...], _counts_kind(216)]
"""So many counters."""
Room136: TypeAlias = Annotated[bytes, Kind("u64", "136s", 136, 8, bytes, bytes, length=17)]
Room208: TypeAlias = Annotated[bytes, Kind("u64", "208s", 208, 8, bytes, bytes, length=26)]
Room1312: TypeAlias = Annotated[bytes, Kind("u64", "1312s", 1312, 8, bytes, bytes, length=164)]
Room2048: TypeAlias = Annotated[bytes, Kind("u64", "2048s", 2048, 8, bytes, bytes, length=256)]
Room4096: TypeAlias = Annotated[bytes, Kind("u64", "4096s", 4096, 8, bytes, bytes, length=512)]


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a C struct; ``name`` is ``hole_N`` for padding."""

    name: str
    c_type: str
    offset: int
    size: int
    length: int


@dataclass(frozen=True, slots=True)
class Wire:
    """A record's layout: the members with their offsets and the compiled ``struct``."""

    members: tuple[Member, ...]
    codec: struct.Struct
    names: tuple[str, ...]
    kinds: tuple[Kind, ...]

    @property
    def size(self) -> int:
        """Bytes, trailing padding included."""
        return self.codec.size

    def offset(self, name: str) -> int:
        """Where a member begins."""
        return next(member.offset for member in self.members if member.name == name)


_WIRES: dict[type[Record], Wire] = {}


def wire_of(record: type[Record]) -> Wire:
    """The layout of a record, worked out once."""
    wire = _WIRES.get(record)
    if wire is None:
        wire = _WIRES[record] = _lay_out(record)
    return wire


def _lay_out(record: type[Record]) -> Wire:
    """By the C rules: each field on a multiple of its alignment, the whole on a multiple of the largest of them."""
    hints = get_type_hints(record, include_extras=True)
    kinds = {field.name: hints[field.name].__metadata__[0] for field in fields(record)}  # type: ignore[arg-type]
    members: list[Member] = []
    code, offset = "<", 0

    def pad_to(align: int) -> None:
        nonlocal code, offset
        hole = -offset % align
        if hole:
            members.append(Member(f"hole_{len(members)}", "u8", offset, hole, hole))
            code, offset = code + f"{hole}x", offset + hole

    for name, kind in kinds.items():
        pad_to(kind.align)
        members.append(Member(name, kind.c_type, offset, kind.size, kind.length))
        code, offset = code + kind.code, offset + kind.size
    pad_to(max(kind.align for kind in kinds.values()))
    return Wire(tuple(members), struct.Struct(code), tuple(kinds), tuple(kinds.values()))


class Record:
    """Base of every map key and value: packs to and from the bytes that the eBPF programs see."""

    __slots__ = ()

    @classmethod
    def wire(cls) -> Wire:
        """The layout of this record."""
        return wire_of(cls)

    def pack(self) -> bytes:
        """The record's bytes. Raises ValueError when a value does not fit its field."""
        wire = wire_of(type(self))
        try:
            values = [kind.encode(getattr(self, name)) for name, kind in zip(wire.names, wire.kinds, strict=True)]
            return wire.codec.pack(*values)
        except (struct.error, ValueError, TypeError) as error:
            raise ValueError(f"{self!r} does not fit its map: {error}") from error

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> Self:
        """The record that bytes stand for. Raises ValueError for another length."""
        wire = wire_of(cls)
        if len(raw) != wire.size:
            raise ValueError(f"{cls.__name__} has {wire.size} bytes, not {len(raw)}")
        return cls.from_values(wire.codec.unpack(raw))

    @classmethod
    def from_values(cls, values: tuple[Any, ...]) -> Self:
        """The record from the raw values of its ``struct`` (as ``Struct.iter_unpack`` gives them)."""
        wire = wire_of(cls)
        return cls(**{name: kind.decode(v) for name, kind, v in zip(wire.names, wire.kinds, values, strict=True)})
