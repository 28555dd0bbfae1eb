"""Whom servers trust as the operator, and when they come to trust another: what a real server does decides how far the
operator's keys can be replaced beneath agents that stay.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from chassis.bus.accounts import Account
from chassis.bus.connection import Connection
from chassis.bus.credentials import credentials
from chassis.bus.nats_config import new_key, write_secret
from chassis.bus.nats_jwt import SYSTEM, Issuer, NodeIssuer, _jwt, claims_of, preloaded
from chassis.bus.resolver import hand_over
from proto.subjects import ACKS
from tests.natsd import NatsServer, bus_of, connecting, handing

NODE = "dataplane-n1"


async def until(holds: Callable[[], bool], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.02)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    made = NatsServer(tmp_path / "nats", ("n1",), signed=True)
    made.start()
    yield made
    made.close()


def came_back(node: Connection, times: int) -> bool:
    return node.connected and node.reconnects == times


def with_operators(server: NatsServer, *operators: str, accounts: dict[str, str] | None = None) -> None:
    """Write a configuration with other operators, and the same accounts or others."""
    lines = server.config.read_text().splitlines()
    trusted = json.dumps(list(operators) if operators[1:] else operators[0])
    text = "\n".join(f"operator: {trusted}" if line.startswith("operator: ") else line for line in lines) + "\n"
    if accounts is not None:
        text = f"{text.partition('resolver_preload: ')[0]}resolver_preload: {json.dumps(accounts)}\n"
    server.config.write_text(text)


def operator(by: Issuer, system: str) -> str:
    """JWT of an operator whose system account is another's."""
    return _jwt(by._key, by._key.public, "airmesh", {"type": "operator", "system_account": system})


def signed_by(by: Issuer, jwt: str) -> str:
    """An account's JWT as another operator signs it: the account is the same one."""
    said = claims_of(jwt)
    return _jwt(by._key, said["sub"], said["name"], said["nats"])


@pytest.mark.parametrize("another", ["signer", "operator"])
async def test_a_server_that_runs_comes_to_trust_nobody_else(server: NatsServer, tmp_path: Path, another: str) -> None:
    """A reload that names another signing key, or an operator beside the present one, is refused whole: it takes a
    start.
    """
    by: Issuer | NodeIssuer
    if another == "signer":
        both = Issuer(server.issuer.seed, (1, 2))
        by, trusted = NodeIssuer(both.nodes_seed, {}), [both.jwt]
    else:
        by = other = Issuer.new()
        trusted = [server.issuer.jwt, operator(other, server.issuer.account(SYSTEM))]
    file, seed, user = tmp_path / "another.creds", new_key(), server.users[NODE]
    write_secret(file, credentials(by.sign_user(NODE, user.name, seed[1]), seed[0]))
    async with handing(server) as hand, connecting(server.url, NODE, file) as node:
        await hand_over(hand, by.sign_account(Account(name=NODE)))
        with_operators(server, *trusted)
        os.kill(server.pid, signal.SIGHUP)
        await until(lambda: "not supported for TrustedOperators" in (server.folder / "nats.log").read_text())
        await until(lambda: "authorization violation" in node.problem.lower())
        assert not node.connected
        server.restart()
        await until(lambda: node.connected and hand.connected)


async def test_accounts_that_another_operator_signs_are_the_same_ones_to_users_and_streams(server: NatsServer) -> None:
    """Servers start twice, as for a signer; no user gets another key, and no stream moves. But whoever has the seed has
    the keys of these accounts, since they follow from it: an operator that takes over its accounts shuts out nobody who
    has stolen it.
    """
    old, new = server.issuer, Issuer.new()
    mine, public = operator(new, old.account(SYSTEM)), old.account(NODE)
    accounts = preloaded(server.config.read_text())
    signed = {public: signed_by(new, jwt) for public, jwt in accounts.items()}
    file = server.seeds / f"{NODE}.seed"
    before, own = file.read_bytes(), ACKS.subject("n1")
    async with bus_of(server, "cluster") as cluster:
        await cluster.make_buckets()
    async with connecting(server.url, NODE, file) as node:
        await until(lambda: node.connected)
        first = await node.call(own, b"x", timeout=20, headers={"Nats-Expected-Stream": ACKS.stream})
        for times, (trusted, given) in enumerate((([old.jwt, mine], accounts), ([mine], signed)), 1):
            with_operators(server, *trusted, accounts=given)
            if times == 2:
                async with handing(server) as hand:
                    for jwt in signed.values():
                        await hand_over(hand, jwt)
            server.restart()
            await until(partial(came_back, node, times))
        second = await node.call(own, b"y", timeout=20, headers={"Nats-Expected-Stream": ACKS.stream})
        assert json.loads(second.data)["seq"] == json.loads(first.data)["seq"] + 1, "it is the stream of before"
    assert file.read_bytes() == before
    assert Issuer(old.seed).account_seed(NODE).reveal() == old.account_seed(NODE).reveal()
    assert claims_of(signed[public])["iss"] != claims_of(accounts[public])["iss"]
