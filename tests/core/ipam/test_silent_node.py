"""A node that goes on without the bus: every order of what it, the API and ``ipam`` do around a loss of ``blocks``.

There is one block, so whoever else is given it doubles addresses. The decisions are the services' own; the steps around
them are told here: n2 is granted the block, or an address to keep out of one of ``ipam``'s, and is cut off at any
moment; its kubelet shows the pod's address to the API before the node is overdue; then n1 asks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network

import pytest

from kit.pools import judge_pools
from proto.addresses import IPAM_HOLDER, Block
from proto.net import Network
from proto.objects import IPPool, Node, Pod
from services.dataplane.core.ipam.addressing import supply_of
from services.ipam.core.blocks import Exhausted, Holder, annotated, choose_block
from services.ipam.core.evidence import Evidence
from services.ipam.core.recovery import adopted, kept_blocks, waiting_for

CIDR = ip_network("10.0.0.0/26")
POOLS = judge_pools([IPPool(name="p", cidr=CIDR, block_size=26)])
N1 = Node(name="n1", uid="u1", ready=True)
EPOCH = "e2"


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What is so at one moment. ``holder``: of the block's record on the present bus."""

    granted: bool = False
    holder: str = ""
    annotated: bool = False
    shown: bool = False
    lost: bool = False
    overdue: bool = False
    lifted: bool = False
    used_on_n2: bool = False
    seen_in_api: bool = False
    used_on_n1: bool = False

    @property
    def n2(self) -> Node:
        return Node(name="n2", uid="u2", ready=True, blocks=(CIDR,) if self.annotated else ())

    @property
    def records(self) -> dict[Network, Block]:
        return {CIDR: Block(CIDR, "p", self.holder, "", 5, "n")} if self.holder else {}

    @property
    def evidence(self) -> Evidence:
        pod = Pod("shop", "db-0", "uid", "n2", addresses=(ip_address("10.0.0.9"),), phase="Running")
        return Evidence({"n1": N1, "n2": self.n2}, {"uid": pod} if self.seen_in_api else {})


def on_the_node(state: State) -> Iterator[State]:
    """n2, its kubelet and ``cluster``: a block of its own."""
    if not (state.granted or state.lost):
        yield replace(state, granted=True, holder="n2")
    if state.holder == "n2" and not (state.lost or state.annotated):
        yield replace(state, annotated=True)
    if state.annotated and not (state.lost or state.shown):
        yield replace(state, shown=True)
    supply = supply_of(POOLS, state.n2 if state.shown else Node(name="n2", uid="u2"))
    if state.granted and not state.used_on_n2 and supply.gives(CIDR):
        yield replace(state, used_on_n2=True)


def kept(state: State) -> Iterator[State]:
    """n2 and ``ipam``: an address to keep, out of a block of its. An ADD ends long before its node is overdue."""
    if not (state.granted or state.lost):
        yield replace(state, granted=True, holder=IPAM_HOLDER)
    if state.granted and not (state.used_on_n2 or state.overdue):
        yield replace(state, used_on_n2=True)


def on_the_bus(state: State) -> Iterator[State]:
    """The loss, and what ``ipam`` and n1 do after it."""
    if state.used_on_n2 and not state.seen_in_api:
        yield replace(state, seen_in_api=True)
    if not state.lost:
        yield replace(state, lost=True, holder="")
    elif not state.overdue and (state.seen_in_api or not state.used_on_n2):
        yield replace(state, overdue=True)
    if state.lost and not state.lifted:
        yield from lift(state)
    if state.lifted and not state.used_on_n1:
        nodes = (N1, state.n2)
        chosen = choose_block(
            POOLS.enabled(4), state.records, Holder("n1", "u1", "n"), kept=annotated(nodes, but="n1"), now=60
        )
        if not isinstance(chosen, Exhausted):
            yield replace(state, used_on_n1=True)


def lift(state: State) -> Iterator[State]:
    """The recovery barrier, as ``upkeep`` lifts it; n1 has reported that it holds nothing."""
    silent, nodes = frozenset({"n2"} if state.overdue else ()), (N1, state.n2)
    if set(waiting_for(nodes, (), EPOCH)) - silent - {"n1"}:
        return
    writes = adopted(nodes, (), EPOCH, state.records, POOLS, 60, silent)
    writes = writes or kept_blocks(state.evidence, nodes, state.records, POOLS, 60)
    yield replace(state, lifted=True, holder=writes[0].block.node if writes else state.holder)


@pytest.mark.parametrize("story", [on_the_node, kept])
def test_no_order_of_events_doubles_an_address_and_every_one_lets_the_others_go_on(story: object) -> None:
    todo, seen = deque([State()]), {State()}
    while todo:
        state = todo.popleft()
        for after in (*story(state), *on_the_bus(state)):  # type: ignore[operator]
            if after not in seen:
                seen.add(after)
                todo.append(after)
    assert not [state for state in seen if state.used_on_n1 and state.used_on_n2]
    assert [state for state in seen if state.used_on_n1], "the block of a node that never used it is given"
    stuck = [state for state in seen if state.overdue and not state.lifted and not list(lift(state))]
    assert not stuck
