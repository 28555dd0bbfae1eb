"""Pairs of nodes: by which model packets travel from one to the other now, why, and what was measured.

Asked of all routing agents at once on ``proto.subjects.PAIRS``, and answered with a ``proto.requests.Reply`` whose body
is :class:`Pairs`. Whose answer it is, is known by the key that it came with. Nothing of it is stored: an agent tells
what its kernel has at that moment, and what it has seen since it started. Models are named as in ``kit.models``.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from proto.net import Address

MAX_PAIRS = 2048
"""Pairs of one answer: some 300 bytes each, and a message has at most a megabyte."""

State = Literal["taken", "pending", "given-up", "none"]
"""What becomes of a pair: its packets take the model that is asked for (``taken``); another is being laid beside it,
and has not been proved yet (``pending``); one that was to be preferred does not work, and the next is taken
(``given-up``); no model that is asked for serves it, and there is no route (``none``)."""

Measured = Literal["layer-2", "small", "largest", "key"]
"""What was tried: whether the other node is on a link of this one; whether a small packet is answered by the way of the
model, and one of the size of :attr:`PairState.mtu`; whether the other node's key is known."""


class PairsRequest(msgspec.Struct, frozen=True):
    """``$SRV.PAIRS`` → :class:`Pairs`, from each agent that is asked; others stay silent."""

    nodes: tuple[str, ...] = ()
    """Only agents of these nodes answer; none: all."""
    peers: tuple[str, ...] = ()
    """Only pairs with these nodes; none: with all."""
    states: tuple[State, ...] = ()
    """Only pairs in one of these states; none: in any."""
    measured: bool = False
    """With what was measured and given up."""


class Measurement(msgspec.Struct, frozen=True):
    """The last try of one thing on one model."""

    model: str
    what: Measured
    answered: bool
    bytes: int = 0
    """Size of the packet that was tried, without what the model adds; 0 where none was sent."""
    round_trip_us: int = 0
    """Microseconds; 0 where nothing was answered."""
    at: int = 0
    """When it was tried, in Unix seconds of its node; 0: not yet."""
    why: str = ""
    """Why not, in one sentence."""


class GivenUp(msgspec.Struct, frozen=True):
    """A model that is asked for, and that this pair does not take."""

    model: str
    why: str
    at: int = 0
    """Unix seconds of its node."""


class PairState(msgspec.Struct, frozen=True):
    """One other node, for packets of pods of one family."""

    peer: str
    family: Literal[4, 6]
    asked: tuple[str, ...] = ()
    """The models that pools and FelixConfiguration ask for, the one to be preferred first."""
    model: str = ""
    """What the routes take now; empty where there is none."""
    pending: str = ""
    """The model that is being laid or proved, if any."""
    via: Address | None = None
    """Next hop of the routes."""
    device: str = ""
    mtu: int = 0
    """The largest packet of a pod that fits, in bytes; 0 where there is no route."""
    since: int = 0
    """When the routes took the model, in Unix seconds of its node; 0: before the agent started."""
    state: State = "none"
    why: str = ""
    """One sentence: why this model; or what is waited for; or why there is none."""
    given_up: tuple[GivenUp, ...] = ()
    measured: tuple[Measurement, ...] = ()


class Pairs(msgspec.Struct, frozen=True):
    """What one node's agent answers; pairs by name of the other node, IPv4 first."""

    node: str
    pairs: tuple[PairState, ...] = ()
    left_out: int = 0
    """Pairs that found no room in this answer."""
