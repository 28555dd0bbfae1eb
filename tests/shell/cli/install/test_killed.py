"""Commands that are killed (SIGKILL) after any of their changes: the next run goes on from what the cluster shows, and
the end is that of a run that nothing disturbed. Real servers, agents' real connections and Jobs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from chassis.bus.connection import Connection
from cli.install import names
from tests.shell.cli.install.conftest import APPS, BATCH, NODES, World
from tests.shell.cli.install.test_install import CORE, data, image
from tests.shell.cli.install.test_keys import Kubelets, airmesh, keys_in_secrets, kubelets, servers, until
from tests.shell.cli.install.test_signer import is_let_in

__all__ = ["kubelets", "servers"]

INSTALL = ("install", "--uplinks", "eth0", "--pool", "10.244.0.0/16", "--timeout", "120")
AGENTS = ("ipam", *(f"{role}-{node}" for role in ("dataplane", "routing") for node in NODES))


def came_back(agents: list[Connection], times: int) -> bool:
    return all(one.connected and one.reconnects == times for one in agents)


def changes(file: Path) -> list[str]:
    """What a run changed, in its order."""
    found = file.read_text().splitlines()
    file.unlink()
    return found


def kept(world: World) -> tuple[list[str], list[str], list[str]]:
    """What no run may leave more of: Secrets, Jobs, entries of the operator's and the authority's Secret."""
    secrets = [one["metadata"]["name"] for one in world.items(f"{CORE}/secrets")]
    jobs = [one["metadata"]["name"] for one in world.items(f"{BATCH}/jobs") if "seeds" not in one["metadata"]["name"]]
    entries = [f"{name} {entry}" for name in (names.OPERATOR, names.BUS_SECRET) for entry in data(world, name)]
    return sorted(secrets), sorted(jobs), sorted(entries)


class Rotations:
    """Rotations of one kind, one after the other, beneath agents that stay."""

    def __init__(self, world: World, kubelets: Kubelets, agents: dict[str, Connection], *arguments: str) -> None:
        self.world, self.kubelets, self.agents = world, kubelets, agents
        self.arguments = ("keys", "rotate", *arguments, "--timeout", "120")
        self.file = kubelets.folder / "changes"

    async def whole(self) -> list[str]:
        """One that nothing disturbs; its changes."""
        assert not await self._run(0)
        return changes(self.file)

    async def killed(self, after: int, most: int) -> None:
        """One that is killed after a change, and its next run; each agent signs in again ``most`` times at most."""
        before, seeds = kept(self.world), {user: self.kubelets.copy(user) for user in self.agents}
        counted = {user: one.reconnects for user, one in self.agents.items()}
        assert await self._run(after), "it has come so far"
        at = changes(self.file)[-1]
        done = await self._current(airmesh(self.world, *self.arguments))
        assert done.code == 0, (at, done.err)
        await until("all are connected", lambda: all(one.connected for one in self.agents.values()), 60)
        times = {user: one.reconnects - counted[user] for user, one in self.agents.items()}
        # One that was killed after its last step, when only its Jobs were left, has ended: the next is another one.
        whole = 1 if "goes on" in done.err else 2
        print(f"killed after {after}, {at}: signed in again {times}")
        assert max(times.values()) <= most * whole, (at, times, done.err)
        assert kept(self.world) == before, at
        for user, file in seeds.items():
            if file.read_bytes() != self.kubelets.seed(user).read_bytes():
                assert not await is_let_in(self.kubelets, user, file), (at, user)

    async def _run(self, when: int) -> bool:
        return bool(await self._current(asyncio.to_thread(self.world.killed, when, self.file, *self.arguments)))

    async def _current(self, running: Any) -> Any:
        """What comes of a run, while files of services are kept current."""
        task = asyncio.ensure_future(running)
        while not task.done():
            for user in self.agents:
                await asyncio.to_thread(self.kubelets.seed, user)
            await asyncio.sleep(0.1)
        return await task


@asynccontextmanager
async def rotations(world: World, kubelets: Kubelets, *arguments: str) -> Any:
    await keys_in_secrets(world)
    installed = await airmesh(world, *INSTALL)
    assert "revision 1" in installed.out, installed.err
    async with AsyncExitStack() as stack:
        agents = {user: await stack.enter_async_context(kubelets.agent(user)) for user in AGENTS}
        await until("all are connected", lambda: all(one.connected for one in agents.values()))
        yield Rotations(world, kubelets, agents, *arguments)


KINDS = {"keys": ("--node", "n1", "--service", "ipam"), "authority": ("--authority",), "signer": ("--signer",)}
MOST = {"keys": 1, "authority": 1, "signer": 3}
"""Times that an agent signs in again; for another signer servers start twice, too."""


def worth(made: list[str]) -> Iterator[int]:
    """After which changes a run is to be killed: all but those of plain objects, of which one stands for all, and what
    is cleared away, of which the first Job does. The last is left out: all is done by then.
    """
    cleared = next(number for number, change in enumerate(made) if change.startswith("DELETE") and "/jobs" in change)
    for number, change in enumerate(made[:-1]):
        plain = not any(f"/{kind}" in change for kind in ("secrets", "jobs", "statefulsets", "deployments/cluster"))
        if number in (cleared, len(made) // 2) or not (plain or change.startswith("DELETE")):
            yield number + 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_rotation_that_is_killed_anywhere_is_taken_up(kind: str, world: World, kubelets: Kubelets) -> None:
    async with rotations(world, kubelets, *KINDS[kind]) as rotation:
        made = await rotation.whole()
        for after in worth(made):
            await rotation.killed(after, MOST[kind])


@pytest.mark.slow
@pytest.mark.timeout(1200)
async def test_a_nodes_job_that_a_killed_run_has_left_is_taken_up(world: World, kubelets: Kubelets) -> None:
    """One of a node that makes its keys itself: no second Job, and its agents sign in again once."""
    installed = await airmesh(world, *INSTALL)
    assert "revision 1" in installed.out, installed.err
    users, file = ("dataplane-n2", "routing-n2"), kubelets.folder / "changes"
    rotate = ("keys", "rotate", "--node", "n2", "--timeout", "60")
    async with kubelets.cluster(), AsyncExitStack() as stack:
        for user in users:
            joined = await kubelets.joined(user)
            assert joined.returncode == 0, joined.stdout
        agents = [await stack.enter_async_context(kubelets.agent(user)) for user in users]
        await until("both are connected", lambda: all(one.connected for one in agents))
        for times, now in enumerate(((), (), ("--now",)), 1):
            assert await asyncio.to_thread(world.killed, "/jobs", file, *rotate, *now)
            (left,) = jobs = world.items(f"{BATCH}/jobs")
            if times == 2:
                await until("it is done", lambda: world.items(f"{BATCH}/jobs")[0]["status"].get("conditions"), 60)
            done = await airmesh(world, *rotate, *now)
            assert (done.code, done.out) == (0, "new keys: node n2\n"), done.err
            assert "node n2: a rotation was begun, and goes on" in done.err
            assert world.items(f"{BATCH}/jobs") == [], (left, jobs)
            await until("once more", partial(came_back, agents, times), 60)

        # Keys were stolen: what an earlier run has made, to its end, may be these.
        assert await asyncio.to_thread(world.killed, "/jobs", file, *rotate, "--now")
        await until("it is done", lambda: world.items(f"{BATCH}/jobs")[0]["status"].get("conditions"), 60)
        stolen = {user: kubelets.copy(user) for user in users}
        done = await airmesh(world, *rotate, "--now")
        assert (done.code, "goes on" in done.err) == (0, False), done.err
        for user, seed in stolen.items():
            assert not await kubelets.is_let_in(user, seed), user


# Upgrades.


def upgraded(world: World, tag: str) -> list[Any]:
    """What an upgrade has to come to: images, revision, nothing that is left."""
    states = [one["data"]["state"] for one in world.items(f"{CORE}/configmaps") if "state" in (one.get("data") or {})]
    daemons = [image(world, "daemonsets", name) for name in ("dataplane", "routing")]
    services = [image(world, "deployments", name) for name in ("cluster", "dns", "ipam", "policy")]
    wrong = [one for one in (*daemons, *services) if not one.endswith(f":{tag}")]
    return [wrong, {*states} - {"complete"}, world.items(f"{BATCH}/jobs"), *kept(world)]


def upgrade_is_taken_up(world: World, file: Path, when: int | str, tag: str) -> bool:
    """One that is killed, and the next run; whether it came so far."""
    if not world.killed(when, file, "upgrade", "--tag", tag, "--timeout", "120"):
        return False
    done = world.airmesh("upgrade", "--tag", tag, "--timeout", "120")
    assert done.code == 0, (changes(file)[-1], done.err)
    return True


@pytest.fixture
def installed(world: World) -> Callable[[str], list[Any]]:
    """Installed; gives what an upgrade to a tag comes to when nothing disturbs it."""
    done = world.airmesh(*INSTALL)
    assert "revision 1" in done.out, done.err
    return lambda tag: [[], set(), [], *kept(world)]


@pytest.mark.timeout(300)
def test_an_upgrade_that_is_killed_is_taken_up(
    world: World, installed: Callable[[str], list[Any]], tmp_path: Path
) -> None:
    """When half of the services are new: the bus stays, and there is one revision more, from which a way leads back."""
    wanted, buses = installed("0.2.0"), [one["metadata"]["uid"] for one in world.items(f"{APPS}/statefulsets")]
    assert upgrade_is_taken_up(world, tmp_path / "changes", "deployments/policy", "0.2.0")
    assert upgraded(world, "0.2.0") == wanted
    assert [one["metadata"]["uid"] for one in world.items(f"{APPS}/statefulsets")] == buses
    back = world.airmesh("upgrade", "--to", "previous", "--timeout", "120")
    assert "at revision 1, tag 0.1.0" in back.out, back.err


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_an_upgrade_that_is_killed_anywhere_is_taken_up(
    world: World, installed: Callable[[str], list[Any]], tmp_path: Path
) -> None:
    """After every seventh change: a run makes hundreds, nearly all of them of plain objects."""
    wanted, count = installed("0.2.0"), 0
    while upgrade_is_taken_up(world, tmp_path / "changes", 1 + 7 * count, tag := f"0.{2 + count}.0"):
        assert upgraded(world, tag) == wanted, count
        count += 1
    assert count > len(NODES)
