"""Reads the TCP counters of the sockets of this node and its pods, twice, and has ``core.doctor.retransmits`` judge.

Whose an address is, ``blocks`` and ``claims`` say, and for the nodes' own the Node objects. At most :data:`MOST`
sockets are looked at.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from contextlib import suppress
from itertools import islice

from chassis.runtime.service import Runtime
from kit.holdings import Holdings
from linux.netlink import NetlinkRefused
from linux.netns import NotANamespace, by_cookie, inside
from linux.sock_diag import Transfer, transfers
from proto.addresses import Block, Claim
from proto.findings import DoctorRequest, Finding
from proto.net import Address
from proto.objects import Node
from services.dataplane.core.doctor import retransmits
from services.dataplane.core.doctor.retransmits import Sent, Sockets
from services.dataplane.core.endpoint.lifecycle import LocalEndpoints
from services.dataplane.feed import Feed
from services.dataplane.settings import Settings

BETWEEN = 2.5
"""Seconds between two looks."""
MOST = 8192


class RetransmitDoctor:
    """The check of loss between nodes."""

    def __init__(self, feed: Feed, endpoints: LocalEndpoints) -> None:
        self._feed = feed
        self._endpoints = endpoints

    async def check(self, asked: DoctorRequest) -> Iterable[Finding]:
        """Of all sockets, whatever is asked about: a Service is slow by the link that leads to it."""
        if asked.kind not in ("all", "service", "connection", "node"):
            return ()
        cookies = {one.cookie for one in self._endpoints.up.values()}
        before = await asyncio.to_thread(look, cookies)
        await asyncio.sleep(BETWEEN)
        now = await asyncio.to_thread(look, cookies)
        repeated = sum(now[one][1].since(before[one][1]).retransmitted for one in before.keys() & now.keys())
        if repeated < retransmits.LEAST:
            return ()
        sent = retransmits.by_node(before, now, self._node_of({peer for peer, _ in now.values()}))
        return tuple(retransmits.check(self._feed.node, sent, BETWEEN))

    def _node_of(self, peers: Collection[Address]) -> dict[Address, str]:
        blocks = (one.value for one in self._feed.blocks.entries.values() if isinstance(one.value, Block))
        claims = (one.value for one in self._feed.claims.entries.values() if isinstance(one.value, Claim))
        holdings = Holdings(blocks, claims)
        found = {address: one.name for one in self._feed.all_of(Node) for address in one.addresses}
        for peer in peers:
            claim, block = holdings.claims.get(peer), holdings.block_of(peer)
            if claim is not None and claim.node:
                found[peer] = claim.node
            elif block is not None and block.node:
                found[peer] = block.node
        return found


def look(cookies: Collection[int]) -> Sockets:
    """Sockets of the calling thread's namespace and of those with these cookies. Blocking; enters each of them."""
    found: list[Transfer] = []
    with suppress(OSError, NetlinkRefused):
        found += islice(transfers(), MOST)
    with by_cookie(cookies) as namespaces:
        for descriptor in namespaces.values():
            if len(found) < MOST:
                with suppress(OSError, NotANamespace, NetlinkRefused), inside(descriptor):
                    found += islice(transfers(), MOST - len(found))
    return {one.cookie: (one.peer, Sent(segments=one.segments, retransmitted=one.retransmitted)) for one in found}


def start(runtime: Runtime[Settings], feed: Feed, endpoints: LocalEndpoints) -> None:
    """Adds the check."""
    runtime.checks.add((retransmits.LOSES,), RetransmitDoctor(feed, endpoints).check)
