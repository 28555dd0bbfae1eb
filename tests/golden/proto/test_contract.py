"""The contract of a major version is only added to: what breaks it is refused with a sentence that names the field.

``contract-v1.json`` is what was published. ``pytest --update-golden tests/golden/proto`` takes additions in,
and nothing else: for a break the major version has to be raised (``proto.codec.VERSION``, ``proto.subjects.MAJOR``).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest

from proto import codec, net
from proto.codec import VERSION
from tests.golden.proto.contract import Contract, breaks, described, readers
from tests.golden.proto.samples import sample_of
from tests.golden.proto.test_golden import EVENTS, KV_VALUES, REQUESTS, earlier

FOLDER = Path(__file__).parent
MESSAGES = {"kv": KV_VALUES, "event": EVENTS, "rpc": REQUESTS}
EVERY = pytest.mark.parametrize(
    "kind", list(dict.fromkeys(kind for kinds in MESSAGES.values() for kind in kinds)), ids=lambda kind: kind.__name__
)
Address: Any = net.Address


def published() -> Contract:
    contract: Contract = json.loads((FOLDER / f"contract-v{VERSION}.json").read_text())
    return contract


def present() -> Contract:
    contract: Contract = json.loads(json.dumps(described(kind for kinds in MESSAGES.values() for kind in kinds)))
    return contract


def test_the_contract_is_only_added_to(update_golden: bool) -> None:
    path, now = FOLDER / f"contract-v{VERSION}.json", present()
    if update_golden and not path.exists():
        path.write_text(json.dumps(now, indent=1) + "\n")
    found = list(breaks(published(), now))
    assert not found, f"not within version {VERSION}, raise it: " + "; ".join(found)
    if update_golden:
        path.write_text(json.dumps(now, indent=1) + "\n")
    assert published() == now, (
        "the contract has more than was published: run with --update-golden, and have it reviewed"
    )


@EVERY
def test_a_release_of_the_published_contract_reads_what_this_one_writes(kind: type[msgspec.Struct]) -> None:
    body = codec.encode(sample_of(kind))
    old: Any = codec.decode(readers(published())[kind.__name__], body)
    assert contains(msgspec.msgpack.decode(body), msgspec.msgpack.decode(codec.encode(old)))


@EVERY
def test_this_release_reads_what_was_written_before(kind: type[msgspec.Struct]) -> None:
    old = sample_of(readers(published())[kind.__name__])
    body = codec.encode(old)
    assert contains(msgspec.msgpack.decode(codec.encode(codec.decode(kind, body))), msgspec.msgpack.decode(body))


def test_bytes_of_every_earlier_release_are_read() -> None:
    for sort, kinds in MESSAGES.items():
        for kind in kinds:
            for path in earlier(FOLDER / f"{sort}-{kind.__name__}.hex"):
                golden = bytes.fromhex(path.read_text())
                body = msgspec.msgpack.decode(golden)[2] if sort == "kv" else msgspec.msgpack.decode(golden)
                read = codec.open_sealed(kind, golden)[0] if sort == "kv" else codec.decode(kind, golden)
                assert contains(msgspec.msgpack.decode(codec.encode(read)), body), path.name


def contains(more: Any, less: Any) -> bool:
    """Whether a tree says all that another one says."""
    if isinstance(less, dict):
        return isinstance(more, dict) and all(name in more and contains(more[name], less[name]) for name in less)
    if isinstance(less, list):
        return len(more) >= len(less) and all(map(contains, more, less))
    return bool(more == less)


# --- what is refused ---


class Colour(IntEnum):
    RED = 1
    BLUE = 2


class Inner(msgspec.Struct, frozen=True, array_like=True):
    first: int
    second: str = ""


class Message(msgspec.Struct, frozen=True):
    name: str
    count: int
    at: Address | None = None
    colour: Colour = Colour.RED
    family: Literal[4, 6] = 4
    parts: tuple[Inner, ...] = ()


def _with(change: Callable[[Contract], object]) -> list[str]:
    before, now = described([Message]), described([Message])
    change(now)
    return list(breaks(before, now))


def _set(message: str, field: str, **more: Any) -> Callable[[Contract], object]:
    return lambda now: now[message]["message"].update({field: {**now[message]["message"].get(field, {}), **more}})


def _array(names: list[str]) -> Callable[[Contract], object]:
    def change(now: Contract) -> None:
        fields = now["Inner"]["message"]
        now["Inner"]["message"] = {name: fields.get(name, {"type": "int", "absent": 0}) for name in names}

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda now: now.pop("Inner"), "Inner is removed: whoever reads or writes it today is left alone"),
        (lambda now: now["Message"]["message"].pop("count"), "Message.count is removed"),
        (_set("Message", "count", type="str"), "Message.count is retyped: str, and was int"),
        (_set("Message", "at", type="address"), "Message.at is retyped: address, and was optional of address"),
        (
            _set("Message", "parts", type={"list": {"of": "Message"}}),
            "Message.parts is retyped: list of Message, and was list of Inner",
        ),
        (_set("Message", "family", absent=6), "Message.family means 6 when it is absent, and meant 4"),
        (
            lambda now: now["Message"]["message"]["colour"].pop("absent"),
            "Message.colour is required now, and older writers leave it out",
        ),
        (
            _set("Message", "name", absent=""),
            "Message.name is no longer required, and older readers refuse a message without it",
        ),
        (
            _set("Message", "extra", type="int"),
            "Message.extra is new and required, and older writers do not have it: give it a default",
        ),
        (lambda now: now["Colour"]["enum"].pop("BLUE"), "Colour.BLUE is removed"),
        (lambda now: now["Colour"]["enum"].update(BLUE=3), "Colour.BLUE is 3 on the wire where it was 2"),
        (
            lambda now: now["Colour"]["enum"].update(GREEN=3),
            "Colour.GREEN is new, and a reader of this version refuses what it does not know",
        ),
        (lambda now: now.update(Colour={"array": False, "message": {}}), "Colour is another sort of type than it was"),
        (lambda now: now["Message"].update(array=True), "Message is written as an array, and was not"),
        (_array(["second", "first"]), "Inner has its fields in another order, and an array is read by position"),
        (_array(["first", "new", "second"]), "Inner has a new field before its end, and an array is read by position"),
    ],
)
def test_a_break_is_reported_by_the_name_of_its_field(change: Callable[[Contract], object], sentence: str) -> None:
    assert sentence in _with(change)


def test_what_is_only_added_is_no_break() -> None:
    assert not _with(_set("Message", "extra", type="int", absent=0))
    assert not _with(_array(["first", "second", "third"]))
    assert not _with(lambda now: now.update(Other={"array": False, "message": {}}))


def test_a_reader_made_of_the_contract_reads_and_refuses_as_the_type_does() -> None:
    reader, value = readers(described([Message]))["Message"], sample_of(Message)
    assert codec.encode(codec.decode(reader, codec.encode(value))) == codec.encode(value)
    for wrong in ({"name": "n"}, {"name": "n", "count": "1"}, {"name": "n", "count": 1, "colour": 9}):
        with pytest.raises(codec.Malformed, match=r"^Message: "):
            codec.decode(reader, msgspec.msgpack.encode(wrong))


def test_two_types_of_one_name_are_refused() -> None:
    other = msgspec.defstruct("Message", [("x", int)])
    with pytest.raises(TypeError, match="two types of the language are named Message"):
        described([Message, other])
