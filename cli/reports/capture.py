"""`airmesh bgp capture`: BGP messages as they are received and sent, a line each, with what is wrong with them.

A program gets the message as the agent decoded it (`proto.bgp_capture.CapturedMessage`) with its node, one JSON object
a line; this module is how a person sees it, and what is said of the capture itself: what found no room, who is silent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

import msgspec

from cli.reports.table import Cell, Tone, bad, dim
from proto.bgp_capture import (
    BgpCapture,
    CapturedMessage,
    CapturedNotification,
    CapturedOpen,
    CapturedPrefixes,
    MessageFault,
)

SILENT = 5.0
"""Seconds without an answer after which an agent is told to be silent."""
SHOWN = 8
"""Prefixes of a part of an UPDATE that a line has; a program gets all that the agent tells."""
_ARROWS = {"received": "←", "sent": "→"}


class NodeMessage(msgspec.Struct, frozen=True, kw_only=True):
    """What a program gets of one message."""

    node: str
    message: CapturedMessage


class Followed:
    """How far each node's capture has come. Times are seconds of any clock."""

    def __init__(self, nodes: Iterable[str], now: float) -> None:
        self._heard = dict.fromkeys(nodes, now)
        self._answered: set[str] = set()
        self._numbers: dict[str, int] = {}
        self._reported: set[str] = set()
        self._gone: set[str] = set()

    @property
    def begun(self) -> bool:
        """Every agent that is asked captures."""
        return self._answered == self._heard.keys()

    @property
    def over(self) -> bool:
        """No session is left of those that are captured."""
        return self._gone == self._heard.keys()

    def silent(self, now: float) -> bool:
        """No agent answers any more."""
        return all(now - heard > SILENT for heard in self._heard.values())

    def take(self, node: str, answer: BgpCapture, now: float) -> Iterator[str]:
        """An answer of an agent; what a person should know of it, a sentence each."""
        if node not in self._heard:
            return
        self._heard[node] = now
        self._reported.discard(node)
        self._answered.add(node)
        if not answer.peers and node not in self._gone:
            self._gone.add(node)
            yield f"{node} has no such session any more"
        elif answer.peers:
            self._gone.discard(node)
        for message in answer.messages:
            expected = self._numbers.get(node, 0) + 1
            self._numbers[node] = message.number
            if message.number < expected:
                yield f"the agent of {node} has begun anew: what came before it captured again is missing"
            elif message.number > expected:
                yield f"{message.number - expected} messages of {node} were lost on the way"
            if message.missed:
                yield f"{message.missed} messages of {node} found no room before the next one"
        if answer.missed:
            yield f"{answer.missed} messages of {node} found no room"

    def unheard(self, now: float) -> Iterator[str]:
        """Agents that are silent, each once while it is."""
        for node, heard in self._heard.items():
            if now - heard > SILENT and node not in self._reported:
                self._reported.add(node)
                yield f"the agent of {node} does not answer"


def line(node: str, message: CapturedMessage) -> tuple[Cell, ...]:
    """Time, node, peer, direction, type, and what it says."""
    when = datetime.fromtimestamp(message.time_ns / 1e9, tz=UTC)
    ended = any(fault.treatment == "session reset" for fault in message.faults)
    tone = Tone.BAD if ended or message.notification is not None else Tone.STRONG
    return (
        dim(when.strftime("%H:%M:%S.%f")[:-3]),
        Cell(node),
        Cell(message.peer),
        dim(_ARROWS[message.direction]),
        Cell("no message" if message.type == "none" else message.type, tone),
        *(Cell(part) for part in _parts(message)),
        *(bad(_fault(fault)) for fault in message.faults),
        dim(f"{message.octets} octets by the {message.connection} connection"),
    )


def _parts(message: CapturedMessage) -> Iterator[str]:
    if message.open is not None:
        yield _open(message.open)
    if message.notification is not None:
        yield _notification(message.notification)
    family = f"IPv{message.family}" if message.family else ""
    if message.end_of_rib:
        yield f"End-of-RIB {family}"
    if message.refresh:
        yield f"{message.refresh} {family}"
    for part in message.withdrawn:
        yield f"-{_prefixes(part)}"
    for part in message.reachable:
        yield f"+{_prefixes(part)}"
        yield ", ".join(f"{name} {value}".strip() for name, value in part.attributes)


def _open(opened: CapturedOpen) -> str:
    said = f"AS {opened.asn}, router id {opened.router_id}, hold time {opened.hold_seconds} s"
    return f"{said}: {', '.join(opened.capabilities)}" if opened.capabilities else said


def _notification(notification: CapturedNotification) -> str:
    return f"{notification.code}/{notification.subcode} {notification.reason}"


def _prefixes(part: CapturedPrefixes) -> str:
    ids = part.path_ids or (0,) * len(part.prefixes)
    named = [f"{prefix}{f' path {number}' * bool(number)}" for prefix, number in zip(part.prefixes, ids, strict=False)]
    more = part.left_out + max(len(named) - SHOWN, 0)
    return ", ".join(named[:SHOWN]) + (f" and {more} more" if more else "")


def _fault(fault: MessageFault) -> str:
    return f"{fault.treatment}: {f'{fault.about}: ' * bool(fault.about)}{fault.reason}"
