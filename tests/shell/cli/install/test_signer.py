"""Another key by which `cluster` lets nodes in, on a bus that `airmesh install` made: real servers and connections."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from chassis.bus.connection import Connection
from chassis.bus.credentials import credentials
from chassis.bus.nats_config import account_of_node, new_key
from chassis.bus.nats_jwt import RESOLVER_USER, NodeIssuer
from chassis.bus.resolver import hand_over
from chassis.secret import Secret
from cli.install import accounts, names
from proto.subjects import role_of_user
from tests.shell.cli.install.conftest import NODES, World
from tests.shell.cli.install.test_install import data
from tests.shell.cli.install.test_keys import INSTALL, Kubelets, airmesh, keys_in_secrets, kubelets, servers, until

__all__ = ["kubelets", "servers"]

REFUSALS = ("uthoriz", "uthentic", "maximum account active connections exceeded")
"""Words of a server that lets nobody in, or into an account that has no room for anybody."""
SEEDED, OWN = "dataplane-n1", "dataplane-n2"


class Thief:
    """Who has taken what `cluster` holds."""

    def __init__(self, kubelets: Kubelets) -> None:
        texts = data(kubelets.world, names.ADMISSION)
        self._kubelets = kubelets
        self._signer = NodeIssuer(Secret(texts[accounts.NODES_SEED]), json.loads(texts[accounts.PUBLIC_KEYS]))
        self.resolver = kubelets.folder / f"resolver.{len(list(kubelets.folder.glob('resolver.*')))}"
        self.resolver.write_text(texts[accounts.RESOLVER])

    def forged(self, user: str) -> Path:
        """Credentials of a node's user."""
        seed, public = new_key()
        path = self._kubelets.folder / f"{user}.forged"
        path.write_text(credentials(self._signer.sign_user(user, user, public, issued=1 << 40), seed).reveal())
        return path

    async def hands_over(self, connection: Connection, user: str) -> None:
        role, node = role_of_user(user)
        await hand_over(connection, self._signer.sign_account(account_of_node(role, node), {}))


async def is_let_in(kubelets: Kubelets, user: str, file: Path) -> bool:
    async with kubelets.agent(user, file) as one:
        await until("let in or refused", lambda: one.connected or any(word in one.problem for word in REFUSALS), 60)
        return one.connected


def annotated(world: World) -> Any:
    return json.loads(data(world, names.OPERATOR).get(accounts.SIGNING, "{}"))


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_what_a_former_signer_signs_lets_nobody_in(world: World, kubelets: Kubelets) -> None:
    await keys_in_secrets(world)
    installed = await airmesh(world, *INSTALL)
    assert "revision 1" in installed.out, installed.err
    world.kube.call("DELETE", f"/api/v1/namespaces/{names.NAMESPACE}/secrets/{names.node_secret('n2')}")
    kubelets.seed(OWN).unlink()
    kubelets.seed("routing-n2").unlink()
    async with kubelets.cluster():
        for user in (OWN, "routing-n2"):
            joined = await kubelets.joined(user)
            assert joined.returncode == 0, joined.stdout
    thief = Thief(kubelets)
    assert await is_let_in(kubelets, OWN, thief.forged(OWN))
    assert await is_let_in(kubelets, SEEDED, thief.forged(SEEDED))
    taken = {user: kubelets.copy(user) for user in (SEEDED, OWN)}

    async with AsyncExitStack() as stack:
        users = ("ipam", *(f"{role}-{node}" for role in ("dataplane", "routing") for node in NODES))
        agents = [await stack.enter_async_context(kubelets.agent(user)) for user in users]
        await until("all are connected", lambda: all(one.connected for one in agents))
        rotate = ("keys", "rotate", "--signer", "--timeout", "120")
        rotating = asyncio.create_task(airmesh(world, *rotate))
        before = data(world, names.ADMISSION)
        while data(world, names.ADMISSION) == before and not rotating.done():
            await asyncio.sleep(0.1)
        async with kubelets.cluster():  # as its Deployment starts it again
            done = await rotating
        assert (done.code, done.out) == (0, "new keys: who signs for nodes, all nodes\n"), done.err
        assert "the old signer is trusted no more" in done.err
        await until("all are connected", lambda: all(one.connected for one in agents), 60)
        assert max(one.reconnects for one in agents) <= 3, "two starts of the server, and a new key"

        for user, file in taken.items():
            assert not await is_let_in(kubelets, user, file), user
            assert not await is_let_in(kubelets, user, thief.forged(user)), user
            assert await is_let_in(kubelets, user, kubelets.seed(user)), user
        assert not await is_let_in(kubelets, RESOLVER_USER, thief.resolver)
        now = Thief(kubelets)
        assert await is_let_in(kubelets, RESOLVER_USER, now.resolver)

        # What it signs may be handed over, by whom it may be: no server uses it.
        async with kubelets.agent(RESOLVER_USER, now.resolver) as hand:
            await until("it is connected", lambda: hand.connected)
            await thief.hands_over(hand, OWN)
        assert not await is_let_in(kubelets, OWN, thief.forged(OWN))

    assert annotated(world)["numbers"] == [2]
    starts = kubelets.starts
    again = await airmesh(world, "install", "--timeout", "30")
    assert "0 Secrets made" in again.err, again.err
    assert kubelets.starts == starts == 3
    assert await is_let_in(kubelets, SEEDED, kubelets.seed(SEEDED))
