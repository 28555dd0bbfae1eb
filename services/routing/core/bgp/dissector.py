"""The dissector of BGP messages for ``airmesh bgp capture``: octets in, what they say in the terms of the RFCs out.

It reads with the session's own codec, by what both sides agreed on, and so says what the session made of the message:
what RFC 7606 has discarded or withdrawn, and what ended the session. It never fails, whatever the octets are, and what
it says of one message is bounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from proto.bgp_capture import (
    MAX_PREFIXES,
    CapturedMessage,
    CapturedNotification,
    CapturedOpen,
    CapturedPrefixes,
    MessageFault,
    MessageType,
)
from services.routing.core.bgp import text
from services.routing.core.bgp.codec.errors import MessageError
from services.routing.core.bgp.codec.messages import (
    HEADER,
    MessageKind,
    RefreshKind,
    decode_notification,
    decode_open,
    decode_route_refresh,
)
from services.routing.core.bgp.codec.updates import UpdateReader
from services.routing.core.bgp.session.actions import OUTGOING, Link
from services.routing.core.bgp.values import Agreed, Attributes, Family, PathId, Prefix, Update, network_of

MOST_TEXT = 512
"""Characters of one attribute; what is longer is cut and ends in an ellipsis."""
MOST_PARTS = 64
"""Attributes, capabilities or faults that are told of one message."""
_TYPES: dict[MessageKind, MessageType] = {
    MessageKind.OPEN: "OPEN",
    MessageKind.UPDATE: "UPDATE",
    MessageKind.NOTIFICATION: "NOTIFICATION",
    MessageKind.KEEPALIVE: "KEEPALIVE",
    MessageKind.ROUTE_REFRESH: "ROUTE-REFRESH",
}
_REFRESHES = {RefreshKind.REQUEST: "request", RefreshKind.BEGINNING: "begin", RefreshKind.END: "end"}
Said = dict[str, Any]
"""Fields of a :class:`CapturedMessage`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """A message that was received or sent, as it was."""

    peer: str
    time_ns: int
    """Since 1970."""
    sent: bool
    link: Link
    kind: MessageKind | None
    """None: what came has no header of a message."""
    body: bytes
    """Without header."""
    agreed: Agreed | None = None
    """Of the session; None before there is one."""
    refused: str = ""
    """Why the session refuses the message; empty: it does not."""


def dissect(passed: Passed, number: int, missed: int) -> CapturedMessage:
    """What the message says."""
    return CapturedMessage(
        number=number,
        time_ns=passed.time_ns,
        peer=passed.peer,
        direction="sent" if passed.sent else "received",
        connection="outgoing" if passed.link == OUTGOING else "incoming",
        type=_TYPES[passed.kind] if passed.kind is not None else "none",
        octets=HEADER + len(passed.body),
        missed=missed,
        **_said(passed),
    )


def _said(passed: Passed) -> Said:
    refused = (MessageFault(about="", reason=_cut(passed.refused), treatment="session reset"),) * bool(passed.refused)
    try:
        found = _contents(passed)
    except MessageError as error:
        reason = passed.refused or error.reason
        return {"faults": (MessageFault(about="", reason=_cut(reason), treatment="session reset"),)}
    return found | {"faults": (*found.get("faults", ()), *refused)}


def _contents(passed: Passed) -> Said:
    """Raises MessageError."""
    match passed.kind:
        case MessageKind.OPEN:
            return {"open": _open(passed.body)}
        case MessageKind.NOTIFICATION:
            found = decode_notification(passed.body)
            reason = _cut(found.reason)
            return {"notification": CapturedNotification(code=found.code, subcode=found.subcode, reason=reason)}
        case MessageKind.ROUTE_REFRESH:
            refresh = decode_route_refresh(passed.body)
            return {"refresh": _REFRESHES[refresh.kind], "family": _version(refresh.family)} if refresh else {}
        case MessageKind.UPDATE if passed.agreed is not None:
            agreed = passed.agreed
            read_as = replace(agreed, receives_paths=agreed.sends_paths) if passed.sent else agreed
            return _update(UpdateReader(read_as).read(passed.body))
        case _:
            return {}


def _open(body: bytes) -> CapturedOpen:
    opened = decode_open(body)
    capabilities = tuple(map(_cut, islice(text.named_capabilities(opened.capabilities), MOST_PARTS)))
    return CapturedOpen(
        asn=opened.asn, hold_seconds=opened.hold_seconds, router_id=opened.router_id, capabilities=capabilities
    )


def _update(update: Update) -> Said:
    if update.end_of_rib is not None:
        return {"end_of_rib": True, "family": _version(update.end_of_rib)}
    return {
        "withdrawn": tuple(_prefixes(one.family, one.prefixes, one.path_ids) for one in update.unreachable),
        "reachable": tuple(
            _prefixes(one.family, one.prefixes, one.path_ids, one.attributes) for one in update.reachable
        ),
        "faults": tuple(
            MessageFault(
                about=text.attribute_name(one.code),
                reason=_cut(one.reason),
                treatment="treat-as-withdraw" if one.withdrawn else "attribute discard",
            )
            for one in update.faults[:MOST_PARTS]
        ),
    }


def _prefixes(
    family: Family, prefixes: Sequence[Prefix], path_ids: Sequence[PathId], attributes: Attributes | None = None
) -> CapturedPrefixes:
    named: Iterable[tuple[str, str]] = text.named_attributes(attributes) if attributes is not None else ()
    return CapturedPrefixes(
        family=_version(family),
        prefixes=tuple(network_of(family, prefix) for prefix in prefixes[:MAX_PREFIXES]),
        path_ids=tuple(path_ids[:MAX_PREFIXES]),
        left_out=max(len(prefixes) - MAX_PREFIXES, 0),
        attributes=tuple((name, _cut(value)) for name, value in islice(named, MOST_PARTS)),
    )


def _version(family: Family) -> Any:
    return 4 if family is Family.IPV4 else 6


def _cut(words: str) -> str:
    return words if len(words) <= MOST_TEXT else words[: MOST_TEXT - 1] + "…"
