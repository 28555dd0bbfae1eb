"""The wire: what is encoded comes back, and garbage gives ``Malformed``, never another exception."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proto import codec
from proto.addresses import Claim
from proto.objects import KIND_OF, IPPool, Namespace, Owner, Pod
from proto.policy import Revision
from tests.core.proto.strategies import MESSAGES, values_of

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
NATS_TAKES = re.compile(r"[-/_=.a-zA-Z0-9]+")


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@settings(max_examples=25, deadline=None)
@given(draw=st.data())
def test_every_message_comes_back(kind: type[msgspec.Struct], draw: Any) -> None:
    value = draw.draw(values_of(kind))
    assert codec.decode(kind, codec.encode(value)) == value
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    assert codec.open_sealed(kind, codec.seal(value, trace)) == (value, trace)


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@settings(max_examples=25, deadline=None)
@given(body=st.one_of(st.binary(max_size=60), st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["node", "cidr", "rules", "a"]), inner),
    max_leaves=8,
).map(msgspec.msgpack.encode)))  # fmt: skip
def test_garbage_is_malformed(kind: type[msgspec.Struct], body: bytes) -> None:
    for read in (codec.decode, codec.open_sealed):
        try:
            read(kind, body)
        except (codec.Malformed, codec.UnknownVersion) as error:
            assert kind.__name__ in str(error)


@settings(max_examples=200)
@given(values_of(Pod), st.integers(0, 400), st.integers(0, 255))
def test_a_damaged_value_is_malformed_or_another_value(pod: Pod, at: int, byte: int) -> None:
    sealed = bytearray(codec.seal(pod))
    sealed[at % len(sealed)] = byte
    try:
        codec.open_sealed(Pod, bytes(sealed))
    except (codec.Malformed, codec.UnknownVersion):
        return


def test_text_that_is_no_utf_8_is_malformed() -> None:
    whole = codec.seal(
        Claim(ip_address("10.0.0.1"), Owner("n", "k", "o", 0), "node", "u", "c", "eth0", 1, "n"), "trace"
    )
    for word in (b"trace", b"node"):
        with pytest.raises(codec.Malformed, match="Claim"):
            codec.open_sealed(Claim, whole.replace(word, b"\xff" * len(word)))


def test_another_major_version_is_not_malformed() -> None:
    newer = msgspec.msgpack.encode((codec.VERSION + 1, "", {"name": 7}))
    with pytest.raises(codec.UnknownVersion, match="version 2; this release knows 1"):
        codec.open_sealed(Namespace, newer)


def test_depth_and_size_are_bounded() -> None:
    deep = b"\x91" * 100_000 + b"\xc0"
    with pytest.raises(codec.Malformed):
        codec.decode(Namespace, deep)
    with pytest.raises(codec.Malformed, match="larger than"):
        codec.decode(Namespace, b"\xc0" * (codec.MAX_VALUE + 1))
    with pytest.raises(codec.Malformed, match="larger than"):
        codec.encode(Namespace(name="x" * codec.MAX_VALUE, uid="u"))


@given(names)
def test_segments_come_back_and_nats_takes_them(text: str) -> None:
    try:
        segment = codec.encode_segment(text)
    except codec.Malformed:
        assert len(text.encode()) * 3 > codec.MAX_KEY
        return
    assert codec.decode_segment(segment) == text
    assert NATS_TAKES.fullmatch(segment)
    assert "." not in segment
    assert text == "" or not segment.startswith("_")


@given(st.lists(names, min_size=1, max_size=5), st.lists(names, min_size=1, max_size=5))
def test_different_names_are_different_keys(one: list[str], other: list[str]) -> None:
    assert codec.split(codec.join(*one)) == tuple(one)
    assert (codec.join(*one) == codec.join(*other)) == (one == other)


@given(st.text(max_size=12))
def test_a_segment_is_decoded_or_malformed(segment: str) -> None:
    try:
        text = codec.decode_segment(segment)
    except codec.Malformed:
        return
    assert isinstance(text, str)


@pytest.mark.parametrize(
    ("text", "segment"),
    [
        ("", "_"), ("_", "=5F"), ("_epoch", "=5Fepoch"), ("node-1.example.com", "node-1=2Eexample=2Ecom"),
        ("a b", "a=20b"), ("ü", "=C3=BC"), ("*", "=2A"), (">", "=3E"), ("=", "=3D"), ("CamelCase", "CamelCase"),
    ],
)  # fmt: skip
def test_segment_table(text: str, segment: str) -> None:
    assert codec.encode_segment(text) == segment
    assert codec.decode_segment(segment) == text


@pytest.mark.parametrize("segment", ["=", "=4", "=zz", "=C3", "a=", "=GG", "=+1", "= 1"])
def test_segments_that_are_none_of_ours(segment: str) -> None:
    with pytest.raises(codec.Malformed):
        codec.decode_segment(segment)


@given(st.ip_addresses(), st.integers(0, 128))
def test_addresses_and_blocks_are_read_from_their_keys(address: Any, length: int) -> None:
    assert bytes.fromhex(codec.address_segment(address)) == address.packed
    block = ip_network((address, min(length, address.max_prefixlen)), strict=False)
    digits, bits = codec.block_key(block).split("-")
    assert ip_network((bytes.fromhex(digits), int(bits))) == block


@pytest.mark.parametrize("segment", ["", "0x1f", "+00000000000001f", "1f", "00000000000000_1", "00000000000000FF"])
def test_identities_that_are_none(segment: str) -> None:
    with pytest.raises(codec.Malformed):
        codec.parse_identity(segment)


def test_keys_in_their_notation() -> None:
    pod = Pod(namespace="shop", name="web-0", uid="u", node="n1.example")
    assert codec.object_key(pod) == "core.pod.n1=2Eexample.shop.web-0"
    assert codec.object_key(Namespace(name="shop", uid="u")) == "core.namespace._.shop"
    assert codec.owner_key(Owner("shop", "StatefulSet", "cart", 0), 6) == "shop.StatefulSet.cart.0.6"
    assert codec.endpoint_key("n1", 7) == "n1.slot.7"
    assert codec.parse_identity(codec.identity_key(2**64 - 1)) == 2**64 - 1
    assert codec.kind_prefix(KIND_OF[IPPool]) == "crd=2Eprojectcalico=2Eorg.ippool"


@given(values_of(Revision), values_of(Revision))
def test_revisions_of_another_epoch_are_not_covered(one: Revision, other: Revision) -> None:
    assert one.covers(other) == (one.epoch == other.epoch and one.sequence >= other.sequence)
