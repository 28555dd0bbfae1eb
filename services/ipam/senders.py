"""Sender checks: the node whose key sent a request, by its subject; one that claims to be another is refused and
reported.

Owns the comparison of each request with its sender, and the telling of those that do not agree: no agent of ours sends
one. The bus lets a node ask on subjects of its own alone (``proto.subjects.of_node``), so the subject is believed and
the body is not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import msgspec

from chassis.faults import Refused
from chassis.telemetry.log import Log
from kit.once import Once
from proto.requests import BlockReportRequest, BlockRequest, ClaimRelease, ClaimRequest
from services.ipam.claims import NOT_THE_HOLDER
from services.ipam.core.claims import INTENDS, RECOVERED
from services.ipam.core.orphaned import MARK
from services.ipam.core.recovery import ANNOTATED

REPORT_EVERY = 60.0
"""Seconds between two faults about one node: who lies, lies a lot."""
MAX_NAME = 256
"""Characters of a nonce, a container's id and an interface's name."""
OURS = (MARK, INTENDS, RECOVERED, ANNOTATED)
"""Begin nonces that ``ipam`` alone gives."""
REMEDY = "look at that node: its agent says what no agent of ours does; if it was taken over, take its key from it"

M = TypeVar("M", bound=BlockRequest | BlockReportRequest | ClaimRequest)
A = TypeVar("A", bound=msgspec.Struct)


class Senders:
    """``publish`` takes a fault, its remedy and the node it is about; ``clock`` is monotonic seconds."""

    def __init__(
        self, log: Log, publish: Callable[[str, str, str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._log = log
        self._publish = publish
        self._clock = clock
        self._once: Once[str] = Once(every=REPORT_EVERY)

    def checked(self, answer: Callable[[M], Coroutine[Any, Any, A]]) -> Callable[[M, str], Coroutine[Any, Any, A]]:
        """``answer`` for requests that name the node which sent them; others are refused (``not-the-sender``)."""

        async def from_node(request: M, node: str) -> A:
            if request.node != node:
                what = type(request).__name__
                self.report_fault(
                    node, f"node {node} sends a {what} in the name of node {request.node[:64]!r}, which is refused"
                )
                raise Refused(
                    "not-the-sender",
                    f"{what}.node is {request.node[:64]!r}, but node {node} sent it; name the node that asks",
                )
            if not isinstance(request, BlockReportRequest):
                check_names(request)
            return await answer(request)

        return from_node

    def releasing(
        self, answer: Callable[[ClaimRelease, str], Coroutine[Any, Any, None]]
    ) -> Callable[[ClaimRelease, str], Coroutine[Any, Any, None]]:
        """``answer`` for releases, which name no node; whoever releases another's is told."""

        async def from_node(request: ClaimRelease, node: str) -> None:
            check_names(request)
            try:
                await answer(request, node)
            except Refused as refused:
                if refused.code == NOT_THE_HOLDER:
                    self.report_fault(node, f"node {node} asks to release what it does not hold: {refused.message}")
                raise

        return from_node

    def report_fault(self, node: str, fault: str) -> None:
        """A node says what is not so: at most one fault each :data:`REPORT_EVERY` seconds."""
        self._log.warning("node-lies", node=node, why=fault)
        if self._once.happens(node, self._clock()):
            self._publish(fault, REMEDY, node)


def check_names(request: BlockRequest | ClaimRequest | ClaimRelease) -> None:
    """Raises Refused (``malformed``) for a name that no agent of ours sends: it would stand in a record."""
    texts = {"nonce": request.nonce}
    if not isinstance(request, BlockRequest):
        texts |= {"container": request.container, "interface": request.interface}
    for name, text in texts.items():
        if len(text) > MAX_NAME:
            raise Refused("malformed", f"{name} of {len(text)} characters is longer than {MAX_NAME}; shorten it")
    if not isinstance(request, ClaimRelease) and (not request.nonce or request.nonce.startswith(OURS)):
        raise Refused("malformed", f"nonce {request.nonce[:64]!r} is empty or one that ipam gives; send a random one")
