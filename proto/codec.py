"""The wire: how keys are spelled and how values and messages become bytes.

Keys are segments joined by dots; whatever NATS does not take in a segment is spelled ``=XX`` (hex of a UTF-8 byte), an
empty segment is ``_``, an address is its hex digits, a block ``<hex>-<length>``. The codec is reversible, and no
encoded segment begins with ``_`` (but the empty one), so markers such as ``_epoch`` never collide with a name.

KV values are an envelope ``[version, traceparent, body]`` in MessagePack, since KV carries no headers of ours; messages
and events are the bare body, with version and W3C trace context in their headers. A value of another major version
raises :class:`UnknownVersion`: the reader keeps its last state and reports, it never treats the key as deleted.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, TypeVar

import msgspec

from proto.net import Address, Network, from_wire, to_wire
from proto.objects import KIND_OF, Kind, KubernetesObject, Owner, Pod
from proto.slots import slot_key

VERSION = 1
MAX_VALUE = 1 << 20
"""Largest value in bytes that is read or written (also the server's max_payload)."""
MAX_KEY = 512

T = TypeVar("T")


class Malformed(ValueError):
    """Bytes or a key that do not say what they should; the message names the field."""


class UnknownVersion(ValueError):
    """A value of a major version this release does not know."""


_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


_AS_IT_IS = re.compile(r"[A-Za-z0-9-][A-Za-z0-9_-]{0,252}").fullmatch


def encode_segment(text: str) -> str:
    """One key segment for any text; raises :class:`Malformed` when it would be longer than MAX_KEY."""
    return text if _AS_IT_IS(text) else _spelled(text)


@lru_cache(maxsize=1024)
def _spelled(text: str) -> str:
    if not text:
        return "_"
    spelled = "".join(c if c in _PLAIN else "".join(f"={byte:02X}" for byte in c.encode()) for c in text)
    if spelled.startswith("_"):
        spelled = "=5F" + spelled[1:]
    if len(spelled) > MAX_KEY:
        raise Malformed(f"name of {len(spelled)} bytes is longer than a key may be ({MAX_KEY})")
    return spelled


def decode_segment(segment: str) -> str:
    """Inverse of :func:`encode_segment`; raises :class:`Malformed`."""
    if segment == "_":
        return ""
    head, *rest = segment.split("=")
    raw = bytearray(head.encode())
    try:
        for part in rest:
            raw += bytes((int(part[:2].ljust(2, "?"), 16),)) + part[2:].encode()
        text = raw.decode()
        if encode_segment(text) == segment:
            return text
    except ValueError as error:
        raise Malformed(f"key segment {segment!r} is not one of ours") from error
    raise Malformed(f"key segment {segment!r} is not one of ours: {text!r} is spelled otherwise")


def join(*segments: str) -> str:
    """Key of encoded segments."""
    return ".".join(encode_segment(segment) for segment in segments)


def split(key: str) -> tuple[str, ...]:
    """Decoded segments of a key; raises :class:`Malformed`."""
    return tuple(decode_segment(segment) for segment in key.split("."))


def address_segment(address: Address) -> str:
    """8 hex digits for IPv4, 32 for IPv6."""
    return address.packed.hex()


def block_key(block: Network) -> str:
    """Key of a block: ``<hex of its network address>-<prefix length>``."""
    return f"{block.network_address.packed.hex()}-{block.prefixlen}"


def identity_key(identity: int) -> str:
    """16 hex digits."""
    return f"{identity:016x}"


def parse_identity(segment: str) -> int:
    """Inverse of :func:`identity_key`; raises :class:`Malformed`."""
    try:
        identity = int(segment, 16)
    except ValueError as error:
        raise Malformed(f"{segment!r} is not an identity") from error
    if identity_key(identity) != segment:
        raise Malformed(f"{segment!r} is not how identity {identity} is spelled in keys")
    return identity


def kind_prefix(kind: Kind) -> str:
    """Key prefix of all objects of a kind: ``<group>.<kind>``."""
    return join(kind.group, kind.kind)


def object_key(value: KubernetesObject) -> str:
    """Key of an object in ``objects``."""
    kind = KIND_OF[type(value)]
    if isinstance(value, Pod):
        return join(kind.group, kind.kind, value.node, value.namespace, value.name)
    return join(kind.group, kind.kind, getattr(value, "namespace", ""), value.name)


def owner_key(owner: Owner, family: int) -> str:
    """Key of an owner's kept address of one family (4 or 6) in ``owners``."""
    return join(owner.namespace, owner.kind, owner.name, str(owner.ordinal), str(family))


def endpoint_key(node: str, number: int) -> str:
    """Key of an endpoint in ``endpoints``: one of its node's slots, whichever it chose; the value says the address."""
    return slot_key(encode_segment(node), number)


_encoder = msgspec.msgpack.Encoder(enc_hook=to_wire)
_decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {}
_envelope = msgspec.msgpack.Decoder(tuple[int, str, msgspec.Raw])


def encode(value: msgspec.Struct) -> bytes:
    """Body of a message; raises :class:`Malformed` when it is larger than MAX_VALUE."""
    body = _encoder.encode(value)
    if len(body) > MAX_VALUE:
        raise Malformed(f"{type(value).__name__} of {len(body)} bytes is larger than {MAX_VALUE}")
    return body


def decode(kind: type[T], body: bytes | msgspec.Raw) -> T:
    """Message of a body; raises :class:`Malformed` naming the field."""
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind, dec_hook=from_wire)
    if len(body) > MAX_VALUE:
        raise Malformed(f"{kind.__name__} of {len(body)} bytes is larger than {MAX_VALUE}")
    try:
        result: T = decoder.decode(body)
    except (msgspec.DecodeError, ValueError, TypeError, NotImplementedError, RecursionError) as error:
        raise Malformed(f"{kind.__name__}: {error}") from error
    return result


def seal(value: msgspec.Struct, traceparent: str = "") -> bytes:
    """KV value: version, trace context (W3C traceparent or empty) and body."""
    return _encoder.encode((VERSION, traceparent, msgspec.Raw(encode(value))))


def open_sealed(kind: type[T], sealed: bytes) -> tuple[T, str]:
    """Value and traceparent of a KV value; raises :class:`Malformed` or :class:`UnknownVersion`."""
    if len(sealed) > MAX_VALUE + 256:
        raise Malformed(f"{kind.__name__} of {len(sealed)} bytes is larger than {MAX_VALUE}")
    try:
        version, traceparent, body = _envelope.decode(sealed)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:  # ValueError: text that is no UTF-8
        raise Malformed(f"{kind.__name__}: not an envelope of ours: {error}") from error
    if version != VERSION:
        raise UnknownVersion(f"{kind.__name__} of version {version}; this release knows {VERSION}")
    return decode(kind, body), traceparent
