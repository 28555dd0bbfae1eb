"""Probes: how the programs of a node judge a packet of one connection, hop by hop, without any packet being sent.

Asked of all dataplane agents on ``proto.subjects.PROBES``, answered by the one that the request names, with a
``proto.requests.Reply`` whose body is :class:`ProbeAnswer`. Whose answer it is, is known by the key that it came with.
The packet is run through the node's own programs and maps, apart from live packets (BPF_PROG_TEST_RUN): nothing leaves
the node, reaches a pod or is remembered. The frame that one node gives is what the next one is asked about, so whoever
asks follows the packet. One packet there, and one back, which the later node must know as the answer to the first.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from proto.net import Address

MAX_PROBES = 32
"""Of one request."""
MAX_STEPS = 4
MAX_FRAME = 512
"""Bytes."""
MAX_BACKENDS = 8
"""Backends of a Service that are named: each is followed."""


class ProbeStep(msgspec.Struct, frozen=True):
    """A packet at one node: it leaves a pod there, or arrives from another node."""

    way: Literal["leaves", "arrives"]
    is_reply: bool = False
    """The packet back, from the destination to the source."""
    frame: bytes = b""
    """Of one that arrives: Ethernet frame as it left the other node."""
    decrypted: bool = False
    """It arrives by WireGuard: ``frame`` has what is in the tunnel."""


class Probe(msgspec.Struct, frozen=True):
    """A connection, and its packets at this node in their order. Later ones know of the earlier ones alone."""

    source: Address
    destination: Address
    source_port: int
    port: int
    protocol: int
    """IANA number: 6, 17 or 132."""
    steps: tuple[ProbeStep, ...] = ()


class ProbeRequest(msgspec.Struct, frozen=True):
    """``$SRV.PROBES`` → :class:`ProbeAnswer`, from the dataplane agent of ``node``; others stay silent."""

    node: str
    probes: tuple[Probe, ...]


class Judgement(msgspec.Struct, frozen=True):
    """What the conntrack and the policy of one end said of a packet."""

    direction: Literal["egress", "ingress"]
    reason: str
    """Name of a ``proto.flow.DropReason``: FORWARDED (a new flow), REPLY (of a known one), or why it ends here."""
    subject: str = ""
    """``namespace/pod`` whose policy was asked."""
    peer: str = ""
    """Who the other end is by this node's addresses: a pod, ``node/…``, a reserved identity; empty: nobody it knows."""
    peer_identity: int = 0
    policies: tuple[str, ...] = ()
    """``namespace/name`` of the policies that decided; none: the end is not isolated in this direction."""
    rule: int = -1
    revision: str = ""


class ProbeHop(msgspec.Struct, frozen=True):
    """What became of a packet at one step."""

    way: Literal["leaves", "arrives"]
    is_reply: bool
    program: str
    """That judged it, by its name."""
    outcome: Literal["delivered", "sent", "stack", "dropped"]
    """Given to the pod; sent to another node; handed to the node's stack, which routes it; dropped."""
    reason: str = ""
    """Why it was dropped: name of a ``proto.flow.DropReason``."""
    judgements: tuple[Judgement, ...] = ()
    """Of the sender's end and, where it is here, the receiver's."""
    model: str = ""
    """How it travels to the next node (``kit.models``), or ``bgp`` by a learnt route."""
    device: str = ""
    next_hop: Address | None = None
    outer_source: Address | None = None
    outer_destination: Address | None = None
    """Of the tunnel's packet."""
    frame: bytes = b""
    """As it goes on; empty when it does not."""


class ServiceChoice(msgspec.Struct, frozen=True):
    """The destination is a Service's address: what sockets of the source make of it."""

    backends: tuple[tuple[Address, int], ...] = ()
    """Address and port, at most :data:`MAX_BACKENDS`; with none at all a connection is refused."""
    count: int = 0
    """All of them."""
    affinity_seconds: int = 0
    translated: bool = True
    """False: the socket programs do not act in the source's network namespace, so it gets no backend."""


class Listener(msgspec.Struct, frozen=True):
    """The destination's socket, in the pod's network namespace."""

    listens: bool
    process: str = ""
    """Name and pid, where the agent may see it."""
    waiting: int = 0
    """TCP: connections that nobody has accepted yet."""
    bound: int = 0
    """TCP: how many may wait."""


class ProbeResult(msgspec.Struct, frozen=True):
    """What the node says of one probe. A packet that does not go on has no later hop."""

    service: ServiceChoice | None = None
    """Then there are no hops: ask again with a backend for the destination."""
    hops: tuple[ProbeHop, ...] = ()
    listener: Listener | None = None
    """None: the destination is no pod of this node, or it could not be looked at."""
    refused: str = ""
    """Why the node cannot say: one sentence."""


class ProbeAnswer(msgspec.Struct, frozen=True):
    """What one node answers: a result for each probe, in their order."""

    node: str
    results: tuple[ProbeResult, ...] = ()
