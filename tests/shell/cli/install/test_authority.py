"""Another authority for the servers of a bus that `airmesh install` made: three real servers, real connections."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from chassis.bus import tls
from cli.install import certificates, names, secrets
from cli.install.authority import certificate_secret
from cli.install.secrets import Host
from tests.shell.cli.install.conftest import APPS, NODES, World
from tests.shell.cli.install.test_install import CORE, data
from tests.shell.cli.install.test_keys import INSTALL, Kubelets, airmesh, keys_in_secrets, kubelets, until

__all__ = ["kubelets"]

ROTATE = ("keys", "rotate", "--authority", "--timeout", "60")
USERS = ("dataplane-n1", "routing-n1", "dataplane-n2", "routing-n3", "ipam", "policy")


@pytest.fixture
def servers() -> int:
    return len(NODES)


def kept(kubelets: Kubelets, name: str) -> Path:
    """What somebody has who keeps the authority of now."""
    path = kubelets.folder / name
    path.write_bytes(kubelets.ca.read_bytes())
    return path


async def fingerprint(ca: Path) -> str:
    (one,) = tls.authorities(await asyncio.to_thread(tls.trust, ca))
    return one


async def rotated(world: World, *more: str) -> Any:
    return await airmesh(world, *ROTATE, *more)


async def is_trusted(kubelets: Kubelets, ca: Path) -> bool:
    """Whether one who trusts this authority takes the servers for the bus'."""
    async with kubelets.agent("ipam", ca=ca) as one:
        await until("it is connected or refuses", lambda: one.connected or "was not signed by" in one.problem)
        return one.connected


HOSTS = tuple(Host(name=name, uid=name, addresses=(f"192.0.2.{n}",)) for n, name in enumerate(NODES, 1))


def made(there: dict[str, Any], servers: tuple[Host, ...]) -> list[str]:
    """Names of what an install makes of certificates."""
    fresh = list(secrets.missing_certificates(there, servers))
    there.update({one["metadata"]["name"]: one for one in fresh})
    return [one["metadata"]["name"] for one in fresh]


def test_a_server_that_comes_during_a_rotation_is_signed_for() -> None:
    """By who signs now; both authorities are trusted on."""
    there: dict[str, Any] = {}
    assert made(there, HOSTS[:1]) == [names.BUS_SECRET, names.BUS_TLS]
    (old,), new = secrets.own_authority(there), certificates.make_authority()
    there[names.BUS_SECRET] = secrets.with_next_authority(there, new)
    for signer, hosts in ((old, HOSTS[:2]), (new, HOSTS)):
        leaf = certificates.sign(signer, sorted(secrets.names_to_sign(hosts[:-1])))
        there[names.BUS_TLS] = certificate_secret(there, leaf, old.certificate)
        assert made(there, hosts[:-1]) == []
        assert made(there, hosts) == [names.BUS_TLS]
        texts = secrets.texts_of(there[names.BUS_TLS])
        assert certificates.names_of(texts["tls.crt"]) == secrets.names_to_sign(hosts)
        assert [certificates.is_signed_by(texts["tls.crt"], one) for one in (old, new)] == [
            signer == old,
            signer == new,
        ]
        assert texts["ca.crt"] == old.certificate + new.certificate
    there[names.BUS_SECRET] = secrets.with_authority(there, new)
    assert secrets.own_authority(there) == (new,)


def test_servers_start_again_for_a_certificate_that_they_were_not_given() -> None:
    there: dict[str, Any] = {}
    made(there, HOSTS)
    (authority,), first = secrets.own_authority(there), secrets.started_with(there[names.BUS_TLS])
    leaves = [certificates.sign(authority, ["localhost"]) for _ in range(2)]
    for leaf in leaves:
        there[names.BUS_TLS] = certificate_secret(there, leaf, authority.certificate)
        assert secrets.started_with(there[names.BUS_TLS]) == first
    for wrong in ('{"given": "another", "started": "x"}', "[]", "no JSON", '{"given": 1}', ""):
        there[names.BUS_TLS]["metadata"]["annotations"] = {names.STARTED: wrong}
        assert secrets.started_with(there[names.BUS_TLS]) == names.digest(leaves[-1].certificate)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_the_authority_changes_beneath_agents_that_stay(world: World, kubelets: Kubelets) -> None:
    await keys_in_secrets(world)
    installed = await airmesh(world, *INSTALL)
    assert "revision 1" in installed.out, installed.err
    # What servers start with says another thing by now than what they started with.
    assert (await airmesh(world, "keys", "rotate", "--service", "cli", "--now")).code == 0
    generation = world.get(f"{APPS}/statefulsets/nats")["metadata"]["generation"]
    old = kept(kubelets, "old.crt")
    async with AsyncExitStack() as stack:
        agents = {user: await stack.enter_async_context(kubelets.agent(user)) for user in USERS}
        # A person's command stays connected, and looks at no file.
        person = await stack.enter_async_context(kubelets.agent("cli", ca=old))
        await until("all are connected", lambda: all(one.connected for one in (*agents.values(), person)))

        # One whose file is late is waited for; meanwhile both are trusted.
        late = await stack.enter_async_context(kubelets.agent("dns", ca=kubelets.folder / "late" / "ca.crt"))
        await until("the late one is connected", lambda: late.connected)
        kubelets.late = frozenset({"late"})
        waits = f"test trusts {await fingerprint(old)}: the new authority is not known yet\n"
        with world.command(*ROTATE) as interrupted:
            await until("the others trust both", lambda: (kubelets.folder / "jobs.log").read_text().endswith(waits), 90)
            interrupted.kill()
        assert await is_trusted(kubelets, old)
        assert await is_trusted(kubelets, kubelets.ca)
        assert kubelets.ca.read_text().count("BEGIN CERTIFICATE") == 2
        begun = data(world, names.BUS_SECRET)["next.crt"]

        kubelets.late = frozenset()
        done = await rotated(world)
        assert (done.code, done.out) == (0, "new keys: the bus' authority\n"), done.err
        assert "was begun, and goes on" in done.err
        assert {user: one.reconnects for user, one in agents.items()} == dict.fromkeys(USERS, 1)
        assert (late.reconnects, person.reconnects) == (1, 0)
        assert all(one.connected for one in (*agents.values(), late, person))

        assert not await is_trusted(kubelets, old), "a certificate of the old authority is refused"
        assert kubelets.ca.read_text() == begun == data(world, names.BUS_SECRET)["tls.crt"]
        assert "next.crt" not in data(world, names.BUS_SECRET)
        shown = {await tls.shown("127.0.0.1", port) for port in kubelets.ports}
        assert len(shown) == 1

        # The key of that one was stolen: nobody is waited for, and who connects again without the file is away.
        stolen = kept(kubelets, "stolen.crt")
        kubelets.late = frozenset({"late"})
        at_once = await rotated(world, "--now")
        assert at_once.code == 0, at_once.err
        assert not await is_trusted(kubelets, stolen)
        assert await is_trusted(kubelets, kubelets.ca)
        await until("all have signed in again", lambda: all(one.reconnects == 2 for one in agents.values()), 60)
        assert (late.connected, late.reconnects, person.connected) == (True, 1, True)
        kubelets.late = frozenset()
        await asyncio.to_thread(kubelets.refresh)
        await until("the late one, too", lambda: late.connected and late.reconnects == 2)

        # Servers let each other in by it, and a later run starts none of them again.
        await asyncio.to_thread(kubelets.restart, 0)
        again = await airmesh(world, "install", "--timeout", "60")
        assert again.code in (0, 1), again.err
        assert "0 Secrets made" in again.err, again.err
        assert world.get(f"{APPS}/statefulsets/nats")["metadata"]["generation"] == generation
    assert world.get(f"{CORE}/secrets/{names.BUS_TLS}")["metadata"]["annotations"]
