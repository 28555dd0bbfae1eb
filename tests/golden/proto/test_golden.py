"""Golden bytes of every event, KV value, question and answer: what is published is never changed by accident.

``pytest --update-golden tests/golden/proto`` writes them again, which a review must then allow. Bytes that were golden
before stay beside them, numbered from the oldest, and are read by each later release: ``test_contract.py``.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import msgspec
import pytest

from proto import addresses, asyncapi, codec, dns, flow, identity, leases, objects, policy, residents, routes, sync
from proto.events import EVENTS_BY_SUBJECT
from proto.requests import REQUESTS_BY_SUBJECT, Reply
from proto.subjects import OF_NODES, ROLES, SPANS, of_node
from tests.golden.proto.samples import sample_of

FOLDER = Path(__file__).parent
KV_VALUES: tuple[type[msgspec.Struct], ...] = (
    addresses.Block, addresses.BlockReport, addresses.AcknowledgedEndpoints, addresses.OwnerRecord, addresses.Claim,
    addresses.Endpoint,
    dns.CoreDNSDecision, dns.DnsReport, dns.DnsTuning, dns.DnsWish,
    identity.IdentityRecord, identity.RelevantKeys, leases.Lease,
    *(kind.type for kind in objects.KINDS),
    policy.CompiledPolicy, policy.CidrPartition, policy.Frontier, policy.Ack, residents.Residents, routes.NodeRoutes,
    sync.Epoch, sync.Complete,
)  # fmt: skip
EVENTS = tuple(sorted(set(EVENTS_BY_SUBJECT.values()), key=lambda kind: kind.__name__))
REQUESTS: tuple[type[msgspec.Struct], ...] = (
    Reply, *(kind for pair in REQUESTS_BY_SUBJECT.values() for kind in pair if kind is not None),
)  # fmt: skip
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def hexadecimal(body: bytes) -> str:
    return "\n".join(body.hex()[at : at + 96] for at in range(0, len(body) * 2, 96)) + "\n"


def earlier(path: Path) -> list[Path]:
    """Bytes that were golden before those of ``path``, the oldest first."""
    found = (one for one in FOLDER.glob(f"{path.stem}.*.hex"))
    return sorted(found, key=lambda one: int(one.name.split(".")[1]))


def check(path: Path, body: bytes, update: bool) -> None:
    text = hexadecimal(body)
    if update:
        if path.exists() and path.read_text() != text:
            path.rename(path.with_name(f"{path.stem}.{len(earlier(path)) + 1}.hex"))
        path.write_text(text)
    assert path.exists(), f"{path.name} is missing: run with --update-golden"
    assert path.read_text() == text, (
        f"{path.name}: the wire has changed; readers of other releases would not understand"
    )


@pytest.mark.parametrize("kind", KV_VALUES, ids=lambda kind: kind.__name__)
def test_kv_value(kind: type[msgspec.Struct], update_golden: bool) -> None:
    value: Any = sample_of(kind)
    check(FOLDER / f"kv-{kind.__name__}.hex", codec.seal(value, TRACE), update_golden)
    golden = bytes.fromhex((FOLDER / f"kv-{kind.__name__}.hex").read_text())
    assert codec.open_sealed(kind, golden) == (value, TRACE)


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.__name__)
def test_event(kind: type[msgspec.Struct], update_golden: bool) -> None:
    value: Any = sample_of(kind)
    check(FOLDER / f"event-{kind.__name__}.hex", codec.encode(value), update_golden)
    assert codec.decode(kind, bytes.fromhex((FOLDER / f"event-{kind.__name__}.hex").read_text())) == value


@pytest.mark.parametrize("kind", REQUESTS, ids=lambda kind: kind.__name__)
def test_question_and_answer(kind: type[msgspec.Struct], update_golden: bool) -> None:
    value: Any = sample_of(kind)
    check(FOLDER / f"rpc-{kind.__name__}.hex", codec.encode(value), update_golden)
    assert codec.decode(kind, bytes.fromhex((FOLDER / f"rpc-{kind.__name__}.hex").read_text())) == value


def test_every_question_that_is_served_is_in_the_table() -> None:
    served = {SPANS, *(subject for role in ROLES for subject in (*role.serves, *role.discovered))}
    assert {of_node(one, "*") if one in OF_NODES else one for one in REQUESTS_BY_SUBJECT} == served


def test_no_golden_file_is_left_over() -> None:
    expected = {f"kv-{kind.__name__}" for kind in KV_VALUES}
    expected |= {f"event-{kind.__name__}" for kind in EVENTS} | {f"rpc-{kind.__name__}" for kind in REQUESTS}
    assert {path.name.split(".")[0] for path in FOLDER.glob("*.hex")} == expected


def test_drop_reasons_keep_their_numbers() -> None:
    assert [(reason.name, reason.value) for reason in flow.DropReason][:17] == [
        ("FORWARDED", 0), ("REPLY", 1), ("POLICY_DENIED", 2), ("POLICY_UNKNOWN", 3), ("POLICY_REVOKED", 4),
        ("SPOOFED_ADDRESS", 5), ("SPOOFED_MAC", 6), ("SPOOFED_NEIGHBOUR", 7), ("NOT_IP", 8), ("MALFORMED", 9),
        ("FRAGMENT", 10), ("EXTENSION_HEADERS", 11), ("CONNTRACK_FULL", 12), ("CONNTRACK_BUDGET", 13),
        ("TTL_EXCEEDED", 14), ("ENDPOINT_GONE", 15), ("LINK_UNKNOWN", 16),
    ]  # fmt: skip


def test_asyncapi_document_is_fresh() -> None:
    committed = FOLDER.parent.parent.parent / "docs" / "asyncapi.json"
    assert committed.read_text() == asyncapi.render(), "run: python -m proto.asyncapi"


def test_asyncapi_names_every_event_once() -> None:
    document = asyncapi.document()
    spoken = {channel["address"].replace("{node}", "*") for channel in document["channels"].values()}
    assert spoken == set(EVENTS_BY_SUBJECT)
    for message in document["components"]["messages"].values():
        assert message["payload"]["$ref"].rsplit("/", 1)[-1] in document["components"]["schemas"]


def test_addresses_are_reported_as_text() -> None:
    block = addresses.Block(cidr=ip_network("10.244.0.0/26"), pool="p", node="n", node_uid="u", epoch=1, nonce="x")
    assert b"10.244.0.0/26" in codec.encode(block)
    owner = addresses.OwnerRecord(
        owner=objects.Owner("a", "b", "c"), address=ip_address("fd00::7"), pool="p", nonce="x"
    )
    assert b"fd00::7" in codec.encode(owner)
