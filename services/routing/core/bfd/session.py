"""One BFD session in asynchronous mode, as a value without a clock (RFC 5880 6.8).

The state machine is the table :data:`RECEIVED`. Three things move a session: a packet (``received``), a moment that was
waited for (``elapsed``) and other settings (``configured``); each gives the session after it, and at most one packet to
send now. All times and intervals are microseconds, moments by a clock that does not go back. ``jitter`` is uniform in
[0, 1) and chosen again for each period.

Whoever drives a session hands it the packets that have arrived before it says that time has passed: a driver that was
kept waiting itself then blames nobody else.

Left out, on purpose: echo packets (0 is told for their interval), demand mode at this side (that of the peer is
honoured), and authentication.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from services.routing.core.bfd.packet import ControlPacket, Diagnostic, State

SLOW_US = 1_000_000
"""The least transmit interval until a session is up (RFC 5880 6.8.3)."""
LEAST_US, MOST_US = 10_000, 60_000_000
MOST_MULTIPLIER = 255
_JITTER = 0.25
_JITTER_OF_ONE = 0.15
"""With a multiplier of 1 the interval is shortened by 10 to 25 % (RFC 5880 6.8.7)."""
_NEVER_HEARD = 1
"""bfd.RemoteMinRxInterval before the first packet (RFC 5880 6.8.1)."""

RECEIVED: Mapping[tuple[State, State], State] = {
    (State.ADMIN_DOWN, State.ADMIN_DOWN): State.ADMIN_DOWN,
    (State.ADMIN_DOWN, State.DOWN): State.ADMIN_DOWN,
    (State.ADMIN_DOWN, State.INIT): State.ADMIN_DOWN,
    (State.ADMIN_DOWN, State.UP): State.ADMIN_DOWN,
    (State.DOWN, State.ADMIN_DOWN): State.DOWN,
    (State.DOWN, State.DOWN): State.INIT,
    (State.DOWN, State.INIT): State.UP,
    (State.DOWN, State.UP): State.DOWN,
    (State.INIT, State.ADMIN_DOWN): State.DOWN,
    (State.INIT, State.DOWN): State.INIT,
    (State.INIT, State.INIT): State.UP,
    (State.INIT, State.UP): State.UP,
    (State.UP, State.ADMIN_DOWN): State.DOWN,
    (State.UP, State.DOWN): State.DOWN,
    (State.UP, State.INIT): State.UP,
    (State.UP, State.UP): State.UP,
}
"""(own state, state in the packet) → own state after it (RFC 5880 6.8.6)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a session is held. Raises ValueError."""

    transmit_us: int = 50_000
    """The interval at which this side likes to send, once the session is up."""
    receive_us: int = 50_000
    """The shortest interval at which this side takes packets."""
    multiplier: int = 3
    """Intervals without a packet after which the peer says that this side is gone."""
    enabled: bool = True
    """False: the session is in AdminDown, which is no failure."""

    def __post_init__(self) -> None:
        for name in ("transmit_us", "receive_us"):
            if not LEAST_US <= getattr(self, name) <= MOST_US:
                raise ValueError(f"{name} {getattr(self, name)} is not within {LEAST_US} to {MOST_US} µs: correct it")
        if not 1 <= self.multiplier <= MOST_MULTIPLIER:
            raise ValueError(f"multiplier {self.multiplier} is not within 1 to {MOST_MULTIPLIER}: correct it")


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """What the peer said last."""

    state: State = State.DOWN
    diagnostic: int = 0
    discriminator: int = 0
    """0: nothing was heard within the detection time."""
    transmit_us: int = 0
    receive_us: int = _NEVER_HEARD
    multiplier: int = 0
    demand: bool = False
    independent: bool = False
    """C bit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """How a session left Up."""

    diagnostic: Diagnostic
    remote_state: State
    """What the peer had said last."""
    independent: bool
    """BFD goes on without its control plane at both ends (C bit both ways)."""

    @property
    def administrative(self) -> bool:
        """Somebody switched BFD off, at one end or the other: it says nothing of the path (RFC 5882 3.2)."""
        return self.diagnostic is Diagnostic.ADMIN_DOWN or self.remote_state is State.ADMIN_DOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """See the module."""

    settings: Settings
    discriminator: int
    """bfd.LocalDiscr: not 0, and no other session's."""
    independent: bool = False
    """C bit: this side's BFD goes on without its control plane."""
    since: int
    """When the state became what it is."""
    state: State = State.DOWN
    diagnostic: Diagnostic = Diagnostic.NONE
    remote: Remote = Remote()
    polling: bool = False
    """Packets have the P bit until one comes back with F."""
    poll_again: bool = False
    """Intervals changed during the poll: the F that comes may answer a packet from before."""
    held_transmit_us: int | None = None
    """A shorter interval of before that is kept while the poll for a longer one lasts (RFC 5880 6.8.3)."""
    held_receive_us: int | None = None
    """The same of a longer interval for the detection time."""
    sent_at: int | None = None
    heard_at: int | None = None
    jitter: float = 0.0
    ups: int = 0
    downs: int = 0
    """How often it left Up."""
    failure: Failure | None = None
    """How it left Up last."""
    sent: int = 0
    heard: int = 0
    missed: int = 0
    """Packets that did not come while it was up, by the gaps between those that did."""

    @classmethod
    def begun(cls, settings: Settings, discriminator: int, now: int, *, independent: bool = False) -> Session:
        """A new one, whose first packet is due at once."""
        state, diagnostic = State.DOWN, Diagnostic.NONE
        if not settings.enabled:
            state, diagnostic = State.ADMIN_DOWN, Diagnostic.ADMIN_DOWN
        return cls(
            settings=settings,
            discriminator=discriminator,
            independent=independent,
            since=now,
            state=state,
            diagnostic=diagnostic,
        )

    @property
    def desired_transmit_us(self) -> int:
        """bfd.DesiredMinTxInterval: slow until the session is up."""
        return self.settings.transmit_us if self.state is State.UP else max(self.settings.transmit_us, SLOW_US)

    @property
    def transmit_us(self) -> int:
        """The negotiated interval between two packets of this side, before jitter."""
        own = self.desired_transmit_us if self.held_transmit_us is None else self.held_transmit_us
        return max(own, self.remote.receive_us)

    @property
    def expected_us(self) -> int:
        """The negotiated interval between two packets of the peer."""
        own = self.settings.receive_us if self.held_receive_us is None else self.held_receive_us
        return max(own, self.remote.transmit_us)

    @property
    def detection_us(self) -> int:
        """Detection time (RFC 5880 6.8.4); 0 before the first packet."""
        return self.remote.multiplier * self.expected_us

    @property
    def transmit_at(self) -> int | None:
        """When the next periodic packet is due; None: the peer wants none (RFC 5880 6.8.7)."""
        both_up = self.state is State.UP and self.remote.state is State.UP
        if self.remote.receive_us == 0 or (self.remote.demand and both_up and not self.polling):
            return None
        if self.sent_at is None:
            return self.since
        one = self.settings.multiplier == 1
        shorter = 1 - _JITTER + _JITTER_OF_ONE * self.jitter if one else 1 - _JITTER * self.jitter
        return self.sent_at + int(self.transmit_us * shorter)

    @property
    def expires_at(self) -> int | None:
        """When the peer is taken for gone unless a packet comes; None: nothing is known of it."""
        if self.heard_at is None or self.remote.discriminator == 0:
            return None
        return self.heard_at + self.detection_us

    @property
    def due_at(self) -> int | None:
        """The next moment for :meth:`elapsed`."""
        return min((at for at in (self.transmit_at, self.expires_at) if at is not None), default=None)

    def packet(self, *, final: bool = False) -> ControlPacket:
        """What this side has to say now; P and F are never set together (RFC 5880 6.5)."""
        return ControlPacket(
            state=self.state,
            diagnostic=self.diagnostic,
            poll=self.polling and not final,
            final=final,
            independent=self.independent,
            multiplier=self.settings.multiplier,
            my_discriminator=self.discriminator,
            your_discriminator=self.remote.discriminator,
            transmit_us=self.desired_transmit_us,
            receive_us=self.settings.receive_us,
        )

    def received(self, packet: ControlPacket, now: int, jitter: float) -> tuple[Session, ControlPacket | None]:
        """A packet that was taken as this session's (RFC 5880 6.8.6, after the checks)."""
        after = self._heard(packet, now)
        if packet.final and after.polling:
            after = after._answered()
        if self.state is State.ADMIN_DOWN:
            return after, None
        state = RECEIVED[self.state, packet.state]
        if state is not self.state:
            left = state is State.DOWN
            after = after._moved(state, Diagnostic.NEIGHBOR_DOWN if left else Diagnostic.NONE, now)
        if packet.poll:
            return after._sends(now, jitter, final=True)
        return after._says(self, now, jitter)

    def elapsed(self, now: int, jitter: float) -> tuple[Session, ControlPacket | None]:
        """Time has passed: the peer may be gone, a packet may be due. Nothing happens before its time."""
        after = self
        if after.expires_at is not None and now >= after.expires_at:
            after = after._expired(now)
        if after.transmit_at is not None and now >= after.transmit_at:
            return after._sends(now, jitter)
        return after._says(self, now, jitter)

    def configured(self, settings: Settings, now: int, jitter: float) -> tuple[Session, ControlPacket | None]:
        """Other settings: a poll says them to the peer (RFC 5880 6.8.3); switched off or on, the state follows."""
        if settings == self.settings:
            return self, None
        after = replace(self, settings=settings)._announces(self)
        if not settings.enabled and self.state is not State.ADMIN_DOWN:
            after = after._moved(State.ADMIN_DOWN, Diagnostic.ADMIN_DOWN, now)
        elif settings.enabled and self.state is State.ADMIN_DOWN:
            after = after._moved(State.DOWN, Diagnostic.NONE, now)
        return after._says(self, now, jitter)

    def _heard(self, packet: ControlPacket, now: int) -> Session:
        remote = Remote(
            state=packet.state,
            diagnostic=packet.diagnostic,
            discriminator=packet.my_discriminator,
            transmit_us=packet.transmit_us,
            receive_us=packet.receive_us,
            multiplier=packet.multiplier,
            demand=packet.demand,
            independent=packet.independent,
        )
        missed = 0
        if self.state is State.UP and self.heard_at is not None:
            missed = missing(now - self.heard_at, self.expected_us)
        return replace(self, remote=remote, heard_at=now, heard=self.heard + 1, missed=self.missed + missed)

    def _answered(self) -> Session:
        if self.poll_again:
            return replace(self, poll_again=False)
        return replace(self, polling=False, held_transmit_us=None, held_receive_us=None)

    def _expired(self, now: int) -> Session:
        """What the peer said is forgotten (RFC 5880 6.8.1), and with it the poll, which nobody would answer."""
        up = self.state in (State.INIT, State.UP)
        after = self._moved(State.DOWN, Diagnostic.TIME_EXPIRED, now) if up else self
        return replace(after, remote=Remote(), polling=False, poll_again=False)

    def _moved(self, state: State, diagnostic: Diagnostic, now: int) -> Session:
        """The same in another state, with all that this brings."""
        failure, fell = self.failure, self.state is State.UP
        if fell:
            both = self.independent and self.remote.independent
            failure = Failure(diagnostic=diagnostic, remote_state=self.remote.state, independent=both)
        after = replace(
            self,
            state=state,
            diagnostic=diagnostic,
            since=now,
            ups=self.ups + (state is State.UP),
            downs=self.downs + fell,
            failure=failure,
        )
        return after._announces(self)

    def _announces(self, before: Session) -> Session:
        """Begins a poll when an interval is another; a session that is up changes nothing that hurts until its end."""
        transmit_us, receive_us = self.desired_transmit_us, self.settings.receive_us
        changed = (transmit_us, receive_us) != (before.desired_transmit_us, before.settings.receive_us)
        held_transmit_us = held_receive_us = None
        if self.state is State.UP:
            used = before.desired_transmit_us if before.held_transmit_us is None else before.held_transmit_us
            held_transmit_us = used if used < transmit_us else None
            used = before.settings.receive_us if before.held_receive_us is None else before.held_receive_us
            held_receive_us = used if used > receive_us else None
        if not changed:
            return replace(self, held_transmit_us=held_transmit_us, held_receive_us=held_receive_us)
        return replace(
            self,
            polling=self.remote.discriminator != 0,
            poll_again=self.polling,
            held_transmit_us=held_transmit_us,
            held_receive_us=held_receive_us,
        )

    def _says(self, before: Session, now: int, jitter: float) -> tuple[Session, ControlPacket | None]:
        """Sends at once when there is something new to say (RFC 5880 6.8.7)."""
        new = self._content != before._content and self.remote.receive_us != 0
        return self._sends(now, jitter) if new else (self, None)

    @property
    def _content(self) -> tuple[State, Diagnostic, int, Settings]:
        """All that the contents of a packet follow from, but for P and F."""
        return self.state, self.diagnostic, self.remote.discriminator, self.settings

    def _sends(self, now: int, jitter: float, *, final: bool = False) -> tuple[Session, ControlPacket]:
        return replace(self, sent_at=now, jitter=jitter, sent=self.sent + 1), self.packet(final=final)


def missing(gap_us: int, interval_us: int) -> int:
    """How many packets did not come in a gap between two that did. The peer's jitter makes its interval a quarter
    shorter at most, and a packet that is late by a fifth of it is no lost one.
    """
    return max(0, -(-(5 * gap_us - interval_us) // (5 * interval_us)) - 1) if interval_us else 0
