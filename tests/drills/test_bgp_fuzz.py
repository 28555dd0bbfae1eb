"""No message of a peer raises what nobody expects, and each has the outcome that RFC 7606 gives it; on live sessions
none of them touches what another peer is told, or what was learnt of it.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from ipaddress import ip_network
from random import Random
from typing import Any

import pytest

from services.routing.core.bgp.codec.messages import MessageKind, keepalive
from services.routing.core.bgp.session.table import State
from services.routing.core.bgp.values import Attributes, Origin
from tests.core.routing.bgp.wire import message
from tests.drills.bgp_fuzz import Tally, body_of, constructed, fuzz, pieces, spoilt
from tests.natsd import free_port
from tests.shell.routing.bgp.by_hand import ByHand, until
from tests.shell.routing.bgp.test_router import Node

OUTCOMES = {
    "right",
    "left out",
    "withdrawn",
    *(f"notification 3/{subcode}" for subcode in (2, 4, 5, 6, 8, 9, 10, 11)),
    *(f"spoilt {kind}" for kind in ("OPEN", "UPDATE", "NOTIFICATION", "KEEPALIVE", "ROUTE_REFRESH")),
    *(
        f"spoilt notification {pair}"
        for pair in ("1/1", "1/2", "1/3", "2/0", "2/1", "2/2", "2/4", "3/1", "3/2", "3/10")
    ),
}
"""Each has to come up, or the messages are not those that they should be."""


def check(tally: Tally) -> None:
    for outcome, count in sorted(tally.outcomes.items()):
        print(f"{count:8}  {outcome}")
    assert OUTCOMES - tally.outcomes.keys() == set()


@pytest.mark.timeout(600)
def test_fifty_thousand_messages() -> None:
    check(fuzz(50_000, seed=1))


SESSIONS = range(9, 49)
AT_ONCE = 150
"""Messages of one session, if it lasts."""


@pytest.mark.timeout(300)
async def test_on_live_sessions_the_healthy_peer_is_not_touched() -> None:
    """40 peers come one after the other and send right, wrong and spoilt messages, in pieces."""
    raised: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context))
    random, port, counted = Random(7), free_port(), 0
    node, healthy = Node(port), ByHand(port, 8)
    own = {ip_network(text): Attributes(origin=Origin.IGP) for text in ("172.20.0.0/24", "fd00:20::/64")}
    theirs = {f"172.21.{n}.0/24": "10.0.0.8" for n in range(50)}
    try:
        node.router.announce(own)
        node.follow(node.peer(8))
        await healthy.establish()
        await healthy.send(healthy.announce(*theirs), healthy.end_of_rib())
        await until(lambda: node.routes.said().items() >= theirs.items())
        for number in SESSIONS:
            node.follow(node.peer(8), node.peer(number))
            counted += await _attack(ByHand(port, number), random)
            assert raised == []
            assert not node._task.done()
            assert node.state(8) is State.ESTABLISHED
            assert node.routes.said().items() >= theirs.items()
            assert healthy.table.keys() >= set(map(str, own))
        node.follow(node.peer(8))
        await until(lambda: node.routes.said() == theirs and healthy.table.keys() == set(map(str, own)))
        assert healthy.said.count("+172.20.0.0/24") == 1, "nor sent again"
        assert not healthy.closed
    finally:
        healthy.close()
        node.close()
    assert counted > 2 * len(SESSIONS), "sessions last beyond what is treated as withdrawn (RFC 7606)"


async def _attack(peer: ByHand, random: Random) -> int:
    """Messages that one peer sends before its session ends, by this side or at last by its own; how many."""
    count = 0
    try:
        with suppress(ConnectionError):
            await peer.establish()
            await until(lambda: peer.opened)
            while count < AT_ONCE and not peer.closed:
                one = message(MessageKind.UPDATE, body_of(constructed(random), random))
                stream = spoilt(random, one) if random.random() < 0.02 else one
                for piece in pieces(random, stream):
                    await peer.send(piece)
                await asyncio.sleep(0)
                count += 1
            await peer.send(keepalive())
            await asyncio.sleep(0.02)
    finally:
        peer.close()
    return count


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_million_messages() -> None:
    """``BGP_FUZZ_SEED`` and ``BGP_FUZZ_MESSAGES`` choose others, or more."""
    check(fuzz(int(os.environ.get("BGP_FUZZ_MESSAGES", "1000000")), seed=int(os.environ.get("BGP_FUZZ_SEED", "2"))))
