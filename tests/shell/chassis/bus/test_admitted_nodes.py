"""Servers that trust an operator: nodes come, change their keys and are put out, and no server is reloaded for it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from chassis.bus import connection as chassis_connection
from chassis.bus import tls
from chassis.bus.accounts import Account, User, make_accounts
from chassis.bus.connection import Connection
from chassis.bus.credentials import Identity, credentials, parse
from chassis.bus.nats_config import make_users, new_key, write_secret
from chassis.bus.nats_jwt import SYSTEM, Issuer, carry_over, claims_of, preloaded
from chassis.bus.resolver import connected, distrusting, hand_over, look_up, reload
from chassis.faults import Refused, Unavailable
from chassis.replaced_file import replace_file
from chassis.secret import Secret
from proto.subjects import ACKS, JETSTREAM, ROLES
from tests.nats_cluster import NatsCluster
from tests.natsd import Lines, NatsServer, bus_of, connecting, handing, runtime_of
from tests.pki import Authority

OWN = ACKS.subject("n9")
STREAM = ACKS.stream


async def until(holds: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.02)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    made = NatsServer(tmp_path / "nats", ("n1",), signed=True)
    made.start()
    yield made
    made.close()


def joining(server: NatsServer) -> tuple[Account, User]:
    """The account and user of a node that nobody has heard of."""
    users = make_users([role for role in ROLES if role.name == "dataplane"], ["n9"])
    accounts = {account.name: account for account in make_accounts((*server.users.values(), *users))}
    return accounts["dataplane-n9"], users[0]


def signed(issuer: Issuer, user: User, seed: Secret, public: str) -> Secret:
    return credentials(issuer.sign_user(user.name, user.name, public), seed)


async def test_a_node_joins_changes_its_key_and_is_put_out(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two keys are valid meanwhile; an agent that has not looked at its file reconnects once, when the old one ends."""
    monkeypatch.setattr(chassis_connection, "RENEW_EVERY", 3600.0)
    account, user = joining(server)
    file = tmp_path / "n9.creds"
    write_secret(file, signed(server.issuer, user, user.seed, user.public))
    before = server.config.read_bytes()
    async with bus_of(server, "cluster") as cluster, connecting(server.url, user.name, file) as node:
        await cluster.make_buckets()
        async with handing(server) as hand:
            await asyncio.sleep(0.3)
            assert not node.connected, "its account is not known yet"
            await hand_over(hand, server.issuer.sign_account(account))
            await until(lambda: node.connected)
            stored = await node.call(OWN, b"mine", timeout=5, headers={"Nats-Expected-Stream": STREAM})
            assert b'"seq"' in stored.data
            with pytest.raises(Refused):
                await node.call(OWN.replace("n9", "n1"), b"not mine", timeout=20)

            seed, public = new_key()
            write_secret(file, signed(server.issuer, user, seed, public))
            await node.call(OWN, b"by the old key", timeout=20)
            assert node.reconnects == 0, "the old one is good until it is revoked"
            revoked = {user.public: int(time.time())}
            await hand_over(hand, server.issuer.sign_account(account, revoked))
            await until(lambda: node.reconnects == 1 and node.connected)
            await node.call(OWN, b"by the new key", timeout=20)

            write_secret(file, signed(server.issuer, user, user.seed, user.public))
            await hand_over(hand, server.issuer.sign_account(account, {"*": int(time.time())}))
            await until(lambda: not node.connected)
            await asyncio.sleep(0.3)
            assert not node.connected, "neither key is good any more"
    assert server.config.read_bytes() == before


async def sign_in_once(server: NatsServer, user: str, file: Path) -> bool:
    """Whether a new connection by the key of this file is let in."""
    async with connecting(server.url, user, file) as one:
        await until(lambda: one.connected or "authorization violation" in one.problem.lower())
        return one.connected


async def test_an_agent_takes_its_new_key_and_the_old_one_ends(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reconnects once, while both are good; when the old one is void it is connected by the new one already."""
    monkeypatch.setattr(chassis_connection, "RENEW_EVERY", 0.1)
    name, file, old = "dataplane-n1", server.seeds / "dataplane-n1.seed", tmp_path / "old.creds"
    write_secret(old, Secret(file.read_text()))
    public_of_account = server.issuer.account(name)
    account = next(one for one in make_accounts(server.users.values()) if one.name == name)
    async with runtime_of(server, "dataplane", "n1") as runtime, handing(server) as hand:
        node = runtime.bus.connection
        assert await connected(hand, public_of_account, 1) == {server.users[name].public}
        seed, public = new_key()
        when = int(time.time()) + 1
        fresh = tmp_path / "fresh.creds"
        write_secret(fresh, credentials(server.issuer.sign_user(name, name, public, issued=when), seed))
        assert await sign_in_once(server, name, fresh)
        fresh.replace(file)
        async with asyncio.timeout(20):
            while await connected(hand, public_of_account, 1) != {public}:
                await asyncio.sleep(0.05)
        assert await sign_in_once(server, name, old), "until it is revoked"
        await hand_over(hand, server.issuer.sign_account(account, {"*": when - 1}))
        assert not await sign_in_once(server, name, old)
        await until(lambda: node.connected)
        await node.client().flush(5)
        assert node.reconnects == 1
        assert await connected(hand, public_of_account, 1) == {public}


async def test_of_three_servers_each_says_who_is_connected_and_each_ends_a_key(tmp_path: Path) -> None:
    """Asked and told by one of them."""
    cluster = NatsCluster(tmp_path, nodes=("n1",), signed=True)
    first = cluster.servers[0]
    name, file = "dataplane-n1", first.seeds / "dataplane-n1.seed"
    account = next(one for one in make_accounts(first.users.values()) if one.name == name)
    ca = tmp_path / "tls" / "ca.crt"
    try:
        await asyncio.gather(*(asyncio.to_thread(server.start) for server in cluster.servers))
        async with AsyncExitStack() as stack:
            hand = await stack.enter_async_context(handing(first, ca))
            nodes = [await stack.enter_async_context(connecting(one.url, name, file, ca)) for one in cluster.servers]
            await until(lambda: all(node.connected for node in nodes))
            async with asyncio.timeout(20):
                while await connected(hand, first.issuer.account(name), 3) != {first.users[name].public}:
                    await asyncio.sleep(0.05)
            await hand_over(hand, first.issuer.sign_account(account, {"*": int(time.time())}))
            await until(lambda: not any(node.connected for node in nodes))
            assert await connected(hand, first.issuer.account(name), 3) == set()
    finally:
        cluster.close()


async def who_distrusts(hand: Connection, authority: str) -> object:
    """Nothing when all do trust it; what signs in again meanwhile, the one that asks among them, does not yet."""
    try:
        return await distrusting(hand, authority, 1, besides=())
    except Unavailable as fault:
        return fault


async def test_servers_change_their_certificate_once_all_trust_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is connected signs in again when its file names an authority more, not when it names one less."""
    monkeypatch.setattr(chassis_connection, "RENEW_EVERY", 0.05)
    old, new = Authority(tmp_path / "old"), Authority(tmp_path / "new")
    server = NatsServer(tmp_path / "nats", ("n1",), signed=True, tls=old.sign(tmp_path / "tls"))
    file, trusted = server.seeds / "dataplane-n1.seed", tmp_path / "trusted.crt"
    shutil.copy(old.certificate, trusted)
    server.start()
    try:
        async with AsyncExitStack() as stack:
            seed, public = new_key()
            server.resolver = credentials(server.issuer.sign_for_servers(public, int(time.time()) + 600), seed)
            hand = await stack.enter_async_context(handing(server, trusted))
            with pytest.raises(Refused):
                await look_up(hand, public)
            node = await stack.enter_async_context(connecting(server.url, "dataplane-n1", file, trusted))
            other = await stack.enter_async_context(connecting(server.url, "ipam", server.seeds / "ipam.seed", trusted))
            await until(lambda: node.connected and other.connected)
            (authority,) = tls.authorities(tls.trust(new.certificate))
            besides = {server.issuer.account("ipam")}
            assert len(await distrusting(hand, authority, 1, besides=besides)) == 2, "ours, and the node's"
            assert len(await distrusting(hand, authority, 1, besides=())) == 3

            replace_file(trusted, old.certificate.read_bytes() + new.certificate.read_bytes(), 0o644)
            async with asyncio.timeout(60):
                while await who_distrusts(hand, authority):
                    await asyncio.sleep(0.05)
            before = await tls.shown("127.0.0.1", server.port)
            new.sign(tmp_path / "tls")
            await reload(hand, 1)
            async with asyncio.timeout(20):
                while await tls.shown("127.0.0.1", server.port) == before:
                    await asyncio.sleep(0.05)
            looks = 0
            replace_file(trusted, new.certificate.read_bytes(), 0o644)

            def look(found: tuple[str, ...]) -> tuple[str, ...]:
                nonlocal looks
                looks += found == (authority,)
                return found

            monkeypatch.setattr(tls, "authorities", lambda context, of=tls.authorities: look(of(context)))
            await until(lambda: looks >= 3)
            assert [one.reconnects for one in (hand, node, other)] == [1, 1, 1]
            assert all(one.connected for one in (hand, node, other))
            (tmp_path / "tls" / "tls.crt").write_text("no certificate")
            with pytest.raises(Refused, match="keeps its configuration"):
                await reload(hand, 1)
    finally:
        server.close()


async def test_every_agent_takes_up_an_authority_while_servers_reload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve at once, on three servers: what one tries beside its connection ends, whatever a server leaves open."""
    monkeypatch.setattr(chassis_connection, "RENEW_EVERY", 0.2)
    cluster, trusted = NatsCluster(tmp_path, signed=True), tmp_path / "trusted.crt"
    shutil.copy(tmp_path / "tls" / "ca.crt", trusted)
    first = cluster.servers[0]
    try:
        await asyncio.gather(*(asyncio.to_thread(server.start) for server in cluster.servers))
        async with AsyncExitStack() as stack:
            agents = [
                await stack.enter_async_context(connecting(cluster.url, user, first.seeds / f"{user}.seed", trusted))
                for user in list(first.users)[:12]
            ]
            await until(lambda: all(one.connected for one in agents), 60)
            beside = tmp_path / "beside.crt"
            more = Authority(tmp_path / "another").certificate.read_bytes()
            beside.write_bytes(trusted.read_bytes() + more)
            beside.replace(trusted)
            for server in cluster.servers:
                os.kill(server.pid, signal.SIGHUP)
            await until(lambda: all(one.connected and one.reconnects for one in agents), 90)
            assert [one.reconnects for one in agents] == [1] * len(agents)
    finally:
        cluster.close()


async def test_a_new_key_that_nobody_signed_changes_nothing(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent stays connected by the one it has, says so once, and takes the right one when it comes."""
    monkeypatch.setattr(chassis_connection, "RENEW_EVERY", 0.05)
    file = server.seeds / "dataplane-n1.seed"
    lines = Lines()
    async with runtime_of(server, "dataplane", "n1", lines=lines) as runtime:
        node = runtime.bus.connection
        write_secret(file, credentials("e30.e30.e30", new_key()[0]))
        await until(lambda: len(lines.named("bus-key-refused")) == 1)
        write_secret(file, new_key()[0])
        await until(lambda: len(lines.named("bus-key-refused")) == 2)
        write_secret(file, Secret("no key at all"))
        await asyncio.sleep(0.3)
        assert (node.connected, node.reconnects) == (True, 0)
        assert len(lines.named("bus-key-refused")) == 2
        seed, public = new_key()
        write_secret(file, credentials(server.issuer.sign_user("dataplane-n1", "dataplane-n1", public), seed))
        await until(lambda: node.connected and node.reconnects == 1)
        assert len(lines.named("bus-key-renewed")) == 1


async def test_what_a_server_was_handed_counts_more_than_what_it_starts_with(server: NatsServer) -> None:
    """So that its file need not change with each account."""
    account = next(one for one in make_accounts(server.users.values()) if one.name == "ipam")
    started_with = preloaded(server.config.read_text())[server.issuer.account("ipam")]
    async with handing(server) as hand:
        while int(time.time()) <= claims_of(started_with)["iat"]:
            await asyncio.sleep(0.05)
        later = server.issuer.sign_account(account, {"*": 1})
        await hand_over(hand, later)
    server.restart()
    async with handing(server) as hand:
        assert await look_up(hand, server.issuer.account("ipam")) == later


async def test_what_was_admitted_is_known_after_a_restart(server: NatsServer, tmp_path: Path) -> None:
    account, user = joining(server)
    file = tmp_path / "n9.creds"
    write_secret(file, signed(server.issuer, user, user.seed, user.public))
    async with handing(server) as hand:
        await hand_over(hand, server.issuer.sign_account(account))
        assert await look_up(hand, server.issuer.account("dataplane-nowhere")) == ""
        assert (await look_up(hand, server.issuer.account(account.name))).count(".") == 2
    server.restart()
    async with connecting(server.url, user.name, file) as node:
        await until(lambda: node.connected)


@pytest.mark.parametrize("forger", ["nobody", "an account"])
async def test_what_no_operator_signed_is_refused(server: NatsServer, forger: str) -> None:
    account, user = joining(server)
    jwt = server.issuer.sign_user(account.name, user.name, user.public) if forger == "an account" else "not a JWT"
    async with handing(server) as hand:
        with pytest.raises((Refused, Unavailable)):
            await hand_over(hand, jwt)
        assert await look_up(hand, server.issuer.account(account.name)) == ""


async def test_another_operator_lets_nobody_in(server: NatsServer, tmp_path: Path) -> None:
    """Its accounts are stored, and used by nobody."""
    account, user = joining(server)
    other = Issuer.new()
    file = tmp_path / "forged.creds"
    write_secret(file, signed(other, user, user.seed, user.public))
    async with handing(server) as hand, connecting(server.url, user.name, file) as node:
        await hand_over(hand, other.sign_account(account))
        await until(lambda: "authorization violation" in node.problem.lower())
        assert not node.connected


@pytest.mark.parametrize(
    "subject",
    [
        "$SYS.REQ.CLAIMS.DELETE",
        "$SYS.REQ.CLAIMS.LIST",
        "$SYS.REQ.SERVER.PING",
        "$SYS.REQ.SERVER.PING.CONNZ",
        "$SYS.REQ.ACCOUNT.X.JSZ",
        "$SYS.REQ.SERVER.X.RELOAD",
        "$SYS.REQ.SERVER.X.KICK",
        f"{JETSTREAM}.STREAM.DELETE.{STREAM}",
        "$KV.rules_v1._frontier.0",
    ],
)
async def test_who_hands_over_accounts_may_do_nothing_else(server: NatsServer, subject: str) -> None:
    async with handing(server) as hand:
        with pytest.raises(Refused):
            await hand.call(subject, b"", timeout=20)


async def test_a_bus_of_listed_users_is_carried_over(tmp_path: Path) -> None:
    """Each agent's file is replaced first, and is let in by the server of before, too; then the server changes."""
    server = NatsServer(tmp_path / "nats", ("n1",))
    server.start()
    file = server.seeds / "dataplane-n1.seed"
    key = OWN.replace("n9", "n1")
    try:
        async with bus_of(server, "cluster") as cluster:
            epochs = await cluster.make_buckets()
        async with connecting(server.url, "dataplane-n1", file) as node:
            await until(lambda: node.connected)
            await node.call(key, b"kept", timeout=5, headers={"Nats-Expected-Stream": STREAM})
            for name, user in server.users.items():
                jwt = server.issuer.sign_user(name, name, user.public)
                write_secret(server.seeds / f"{name}.seed", credentials(jwt, user.seed))
            server.restart()
            await until(lambda: node.reconnects == 1 and node.connected)
            server.kill()
            assert carry_over(server.folder / "store", server.issuer)
            assert not carry_over(server.folder / "store", server.issuer), "once"
            server.sign()
            server.start()
            await until(lambda: node.reconnects == 2 and node.connected)
            read = await node.call(f"{JETSTREAM}.DIRECT.GET.{STREAM}.{key}", b"", timeout=20)
            assert read.data == b"kept"
        async with bus_of(server, "cluster") as cluster:
            assert await cluster.make_buckets() == epochs, "nobody lists again"
    finally:
        server.close()


def test_credentials_are_read_as_they_are_written() -> None:
    seed, public = new_key()
    assert parse(seed.reveal() + "\n") == Identity(seed)
    both = parse(credentials("a.b.c", seed).reveal())
    assert (both.seed, both.jwt, both.public) == (seed, "a.b.c", public)
    for wrong in ("", "SUx", "-----BEGIN NATS USER JWT-----\na.b.c\n", Issuer.new().account_seed(SYSTEM).reveal()):
        with pytest.raises(ValueError, match=r"nkey|NATS credentials"):
            parse(wrong)
