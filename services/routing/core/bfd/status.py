"""The state of a BFD session for people: figures, and why it is not up with what to do about it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from proto.net import Address
from services.routing.core.bfd.packet import PORT, Diagnostic, Discard, State
from services.routing.core.bfd.session import Failure, Remote, Session
from services.routing.core.bfd.sessions import Key
from services.routing.core.faults import Fault

DIAGNOSTICS = {
    Diagnostic.NONE: "no diagnostic",
    Diagnostic.TIME_EXPIRED: "no packet came within the detection time",
    Diagnostic.ECHO_FAILED: "the echo function failed",
    Diagnostic.NEIGHBOR_DOWN: "the neighbour signalled session down",
    Diagnostic.FORWARDING_RESET: "the forwarding plane was reset",
    Diagnostic.PATH_DOWN: "the path is down",
    Diagnostic.CONCATENATED_PATH_DOWN: "a concatenated path is down",
    Diagnostic.ADMIN_DOWN: "administratively down",
    Diagnostic.REVERSE_CONCATENATED_PATH_DOWN: "a reverse concatenated path is down",
}
"""In words (RFC 5880 4.1)."""
_ON_ONE_LINK = "BFD of one hop is for peers on one link: switch it off for a peer behind a router"
_REMEDIES = {
    Discard.HOPS: _ON_ONE_LINK,
    Discard.AUTHENTICATED: "switch authentication of BFD off at the peer",
    Discard.NO_SESSION: "it ends by itself when the peer's detection time is over",
}
_REMEDY = "capture UDP port 3784 at this interface, and look which program of the peer sends it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """One session. Moments and intervals are microseconds, moments of the system's monotonic clock."""

    local: Address
    peer: Address
    interface: str
    state: State
    diagnostic: Diagnostic
    since: int
    ups: int
    downs: int
    failure: Failure | None
    """How it left Up last."""
    remote: Remote
    discriminator: int
    multiplier: int
    transmit_us: int
    """Negotiated interval of what this side sends."""
    expected_us: int
    """Negotiated interval of what the peer sends."""
    detection_us: int
    sent: int
    heard: int
    missed: int
    discarded: int
    discard: Discard | None
    """Why most of those packets were discarded."""
    unsent: str = ""
    """What keeps packets from being sent or heard at this node, and the remedy; empty: nothing does."""

    @property
    def key(self) -> Key:
        """What the session is between."""
        return Key(self.local, self.peer, self.interface)


def status_of(key: Key, session: Session, discards: Counter[Discard], unsent: str = "") -> Status:
    """The status of a session."""
    return Status(
        local=key.local,
        peer=key.peer,
        interface=key.interface,
        state=session.state,
        diagnostic=session.diagnostic,
        since=session.since,
        ups=session.ups,
        downs=session.downs,
        failure=session.failure,
        remote=session.remote,
        discriminator=session.discriminator,
        multiplier=session.settings.multiplier,
        transmit_us=session.transmit_us,
        expected_us=session.expected_us,
        detection_us=session.detection_us,
        sent=session.sent,
        heard=session.heard,
        missed=session.missed,
        discarded=discards.total(),
        discard=discards.most_common(1)[0][0] if discards else None,
        unsent=unsent,
    )


def why_not_up(status: Status) -> Fault | None:
    """Why a session is not up, and the remedy; None for one that is."""
    where = f"{status.peer} on {status.interface}" if status.interface else str(status.peer)
    if status.state is State.UP:
        return None
    if status.unsent:
        fault, _, remedy = status.unsent.partition(": ")
        return Fault(f"BFD with {where}: {fault}", remedy)
    if status.state is State.ADMIN_DOWN:
        return Fault(
            f"BFD with {where} is switched off at this node", "switch it on for this peer; BGP goes on without"
        )
    if _is_off(status):
        return Fault(f"{where} has switched BFD off", "switch it on there; BGP goes on without")
    if status.remote.discriminator:
        return Fault(
            f"{where} is heard in state {status.remote.state.name} and does not answer in state Up",
            f"look whether UDP port {PORT} from {status.local} reaches it: a firewall, or another address as neighbour",
        )
    if status.discard is not None:
        remedy = _REMEDIES.get(status.discard, _REMEDY)
        return Fault(f"packets of {where} are discarded: {status.discard.value}", remedy)
    if status.heard:
        return Fault(
            f"{where} has fallen silent: {DIAGNOSTICS[status.diagnostic]}",
            "look whether the link is up, the peer runs, and its BFD still has this node as neighbour",
        )
    return Fault(
        f"nothing has come from {where}",
        f"switch BFD on at the peer for {status.local}, and let UDP port {PORT} through",
    )


def _is_off(status: Status) -> bool:
    """The peer has said AdminDown last. It may fall silent after a detection time (RFC 5880 6.8.16)."""
    if status.remote.discriminator:
        return status.remote.state is State.ADMIN_DOWN
    if status.failure is None or status.diagnostic is not Diagnostic.NEIGHBOR_DOWN:
        return False
    return status.failure.remote_state is State.ADMIN_DOWN
