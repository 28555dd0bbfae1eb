"""Every message cut at every byte, with a byte too many, or as a later release may write it: Malformed or its value."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto import codec, net
from proto.net import MAX_TEXT, from_wire, to_wire
from proto.objects import Namespace
from tests.core.proto.strategies import MESSAGES
from tests.golden.proto.samples import sample_of

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ARRAYS = [kind for kind in MESSAGES if kind.__struct_config__.array_like]
"""Written without the names of their fields: there are many of them in one value."""
NAMED = pytest.mark.parametrize(
    "kind", [kind for kind in MESSAGES if kind not in ARRAYS], ids=lambda kind: kind.__name__
)
Address: Any = net.Address
Network: Any = net.Network
EVERY = pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)


@EVERY
def test_no_beginning_of_a_message_is_a_message(kind: type[msgspec.Struct]) -> None:
    """A torn write or a torn read is never taken for a smaller value."""
    value = sample_of(kind)
    body, sealed = codec.encode(value), codec.seal(value, TRACE)
    for length in range(len(body)):
        with pytest.raises(codec.Malformed, match=f"^{kind.__name__}: "):
            codec.decode(kind, body[:length])
    for length in range(len(sealed)):
        with pytest.raises(codec.Malformed, match=f"^{kind.__name__}: "):
            codec.open_sealed(kind, sealed[:length])


@EVERY
def test_nothing_may_stand_behind_a_message(kind: type[msgspec.Struct]) -> None:
    value = sample_of(kind)
    for more in (b"\xc0", b"\x00", codec.encode(value)):
        with pytest.raises(codec.Malformed):
            codec.decode(kind, codec.encode(value) + more)
        with pytest.raises(codec.Malformed):
            codec.open_sealed(kind, codec.seal(value) + more)


@NAMED
def test_a_field_of_a_later_release_is_passed_over(kind: type[msgspec.Struct]) -> None:
    """What is only added is no new major version: an older reader goes on."""
    value: Any = sample_of(kind)
    tree: dict[str, Any] = msgspec.msgpack.decode(codec.encode(value))
    assert isinstance(tree, dict)
    later = msgspec.msgpack.encode({**tree, "of_a_later_release": {"deep": [1, 2, {"x": None}]}})
    assert codec.decode(kind, later) == value
    sealed = msgspec.msgpack.encode((codec.VERSION, TRACE, msgspec.Raw(later)))
    assert codec.open_sealed(kind, sealed) == (value, TRACE)


@NAMED
def test_each_field_of_another_type_is_named(kind: type[msgspec.Struct]) -> None:
    tree: dict[str, Any] = msgspec.msgpack.decode(codec.encode(sample_of(kind)))
    for name, right in tree.items():
        for wrong in ({"of no field": 1}, [{"of no field": 2}]):
            try:
                codec.decode(kind, msgspec.msgpack.encode({**tree, name: wrong}))
            except codec.Malformed as error:
                assert f"`$.{name}" in str(error), error
            else:
                assert isinstance(right, type(wrong)), f"{name} is taken for what it is not"


@NAMED
def test_what_must_be_there_is_named_when_it_is_not(kind: type[msgspec.Struct]) -> None:
    tree: dict[str, Any] = msgspec.msgpack.decode(codec.encode(sample_of(kind)))
    required = [
        field.name
        for field in msgspec.structs.fields(kind)
        if field.required and field.default is msgspec.NODEFAULT and field.default_factory is msgspec.NODEFAULT
    ]
    for name in required:
        less = {key: value for key, value in tree.items() if key != name}
        with pytest.raises(codec.Malformed, match=f"missing required field `{name}`"):
            codec.decode(kind, msgspec.msgpack.encode(less))


@pytest.mark.parametrize("kind", ARRAYS, ids=lambda kind: kind.__name__)
def test_an_array_may_grow_at_its_end_and_never_shrink(kind: type[msgspec.Struct]) -> None:
    value: Any = sample_of(kind)
    listed: list[Any] = msgspec.msgpack.decode(codec.encode(value))
    assert codec.decode(kind, msgspec.msgpack.encode([*listed, "of a later release"])) == value
    least = sum(field.required for field in msgspec.structs.fields(kind))
    for length in range(least):
        with pytest.raises(codec.Malformed, match="at least length"):
            codec.decode(kind, msgspec.msgpack.encode(listed[:length]))


@pytest.mark.parametrize(
    "envelope",
    [
        (),
        (1,),
        (1, "t"),
        (1, "t", {}, 4),
        ("1", "t", {}),
        (1, 7, {}),
        (1.5, "t", {}),
        (None, "t", {}),
        {"version": 1},
        1,
    ],
)
def test_what_is_no_envelope_is_malformed_and_names_the_kind(envelope: object) -> None:
    with pytest.raises(codec.Malformed, match=r"^Namespace: "):
        codec.open_sealed(Namespace, msgspec.msgpack.encode(envelope))


@pytest.mark.parametrize("version", [0, 2, -1, 2**40])
def test_any_other_version_is_left_to_those_who_know_it(version: int) -> None:
    """Even where its body is none of ours: the reader keeps what it had."""
    with pytest.raises(codec.UnknownVersion, match=f"version {version}"):
        codec.open_sealed(Namespace, msgspec.msgpack.encode((version, "", [1, 2, 3])))


@pytest.mark.parametrize("over", [0, 1])
def test_the_bound_of_a_value_is_exact(over: int) -> None:
    bare = len(codec.encode(Namespace(name="", uid="")))
    value = Namespace(name="x" * (codec.MAX_VALUE - bare - 4 + over), uid="")  # a text so long has a head of 5 bytes
    if over:
        with pytest.raises(codec.Malformed, match=f"larger than {codec.MAX_VALUE}"):
            codec.encode(value)
        return
    body = codec.encode(value)
    assert len(body) == codec.MAX_VALUE
    assert codec.decode(Namespace, body) == value
    assert codec.open_sealed(Namespace, codec.seal(value, TRACE)) == (value, TRACE)


@given(st.ip_addresses())
def test_an_address_and_its_network_come_back(address: Any) -> None:
    assert from_wire(Address, to_wire(address)) == address
    network = ip_network((address, address.max_prefixlen // 2), strict=False)
    assert from_wire(Network, to_wire(network)) == network


@pytest.mark.parametrize(
    "text",
    ["", "10.0.0", "10.0.0.256", "10.0.0.1/33", "010.0.0.1", "::g", "10.0.0.1 ", "x" * (MAX_TEXT + 1), "1" * MAX_TEXT],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    for kind in (Address, Network):
        with pytest.raises(ValueError):
            from_wire(kind, text)


@pytest.mark.parametrize("text", ["10.0.0.1/8", "fd00::1/64"])
def test_bits_behind_a_prefix_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="host bits"):
        from_wire(Network, text)


@pytest.mark.parametrize("value", [1, None, 1.5, b"10.0.0.1", ["10.0.0.1"], {"a": 1}])
def test_an_address_is_text_on_the_wire(value: object) -> None:
    with pytest.raises(ValueError, match="expected the text of an address"):
        from_wire(Address, value)


def test_other_types_have_no_wire_form() -> None:
    with pytest.raises(NotImplementedError, match="no wire form for object"):
        to_wire(object())
    with pytest.raises(NotImplementedError, match="no wire form for int"):
        from_wire(int, "7")
    assert to_wire(ip_address("fd00::7")) == "fd00::7"
