"""Whose word about an address counts."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from kit.holdings import Holdings
from proto.addresses import IPAM_HOLDER, Block, Claim, Endpoint
from proto.objects import Owner


def block(cidr: str, node: str, epoch: int = 5) -> Block:
    return Block(ip_network(cidr), "p", node, f"uid-{node}", epoch, "n")


def claim(address: str, node: str, epoch: int = 5) -> Claim:
    return Claim(ip_address(address), Owner("shop", "StatefulSet", "db", 0), node, "u", "c", "eth0", epoch, "n")


def endpoint(node: str, address: str, epoch: int = 5) -> Endpoint:
    return Endpoint(node, ip_address(address), "shop", "web", "u", 1001, b"\2\0\0\0\0\1", epoch, 1)


HELD = Holdings(
    [
        block("10.244.0.0/26", "n1"),
        block("10.244.0.64/26", "n2"),
        block("10.244.1.0/26", IPAM_HOLDER),
        block("10.244.2.0/26", ""),
        block("10.245.0.0/24", "n2"),
        block("fd00:10:244::/122", "n1"),
    ],
    [claim("10.244.1.7", "n2"), claim("10.244.1.8", "")],
)


@pytest.mark.parametrize(
    ("writer", "address"),
    [
        ("n1", "10.244.0.0"),
        ("n1", "10.244.0.63"),
        ("n2", "10.244.0.64"),
        ("n2", "10.245.0.255"),
        ("n1", "fd00:10:244::3f"),
        ("n2", "10.244.1.7"),
    ],
)
def test_what_its_writer_holds_counts(writer: str, address: str) -> None:
    assert HELD.rejection(writer, endpoint(writer, address)) is None


@pytest.mark.parametrize(
    ("writer", "address", "why"),
    [
        ("n2", "10.244.0.1", "10.244.0.1 lies in block 10.244.0.0/26 of n1"),
        ("n2", "fd00:10:244::1", "fd00:10:244::1 lies in block fd00:10:244::/122 of n1"),
        ("n1", "10.244.1.7", "10.244.1.7 is kept for shop/db, whose pod is on n2"),
        ("n1", "10.244.1.9", "10.244.1.9 lies in block 10.244.1.0/26 of _ipam"),
        ("n1", "10.244.2.1", "10.244.2.1 lies in block 10.244.2.0/26 of nobody"),
        ("n1", "10.246.0.1", "10.246.0.1 lies in no block"),
        ("n1", "172.30.0.11", "172.30.0.11 lies in no block"),
        ("n1", "::ffff:10.244.0.1", "::ffff:af4:1 lies in no block"),
        ("n1", "::10.244.0.1", "::af4:1 lies in no block"),
    ],
)
def test_what_its_writer_does_not_hold_does_not(writer: str, address: str, why: str) -> None:
    rejection = HELD.rejection(writer, endpoint(writer, address))
    assert rejection is not None
    assert (rejection.why, rejection.leftover) == (why, False)


def test_nobody_speaks_in_anothers_name() -> None:
    rejection = HELD.rejection("n2", endpoint("n1", "10.244.0.1"))
    assert rejection is not None
    assert rejection.why == "n2 wrote it in the name of 'n1'"
    long = HELD.rejection("n2", endpoint("n" * 100_000, "10.244.0.64"))
    assert long is not None
    assert len(long.why) < 200


@pytest.mark.parametrize(
    ("writer", "address", "epoch", "leftover"),
    [
        ("n2", "10.244.0.1", 4, True),
        ("n2", "10.244.0.1", 6, False),
        ("n1", "10.244.1.7", 4, True),
        ("n1", "10.244.1.7", 9, False),
        ("n1", "10.244.1.8", 9, True),
        ("n1", "10.246.0.1", 1, False),
    ],
)
def test_a_former_holder_is_distinguished_from_a_liar_by_its_epoch(
    writer: str, address: str, epoch: int, leftover: bool
) -> None:
    rejection = HELD.rejection(writer, endpoint(writer, address, epoch))
    assert rejection is not None
    assert rejection.leftover is leftover


def test_nothing_known_nothing_counts() -> None:
    assert Holdings().rejection("n1", endpoint("n1", "10.244.0.1")) is not None
    assert Holdings().block_of(ip_address("10.244.0.1")) is None
