"""Findings: what is wrong in the mesh, each with its cause, its evidence and its fix.

Asked of all agents at once on ``proto.subjects.FINDINGS``, and answered with a ``proto.requests.Reply`` whose body is
:class:`Findings`. Each agent answers for its part: it compares what is wanted with what the kernel, the process or the
server has at that moment, and stores nothing. Whose answer it is, is known by the key that it came with.

A finding states evidence alone. What an agent could not look at is named in :attr:`Findings.unchecked`, so that
"nothing was found" is never "nothing was looked at".
"""

from __future__ import annotations

from typing import Literal

import msgspec

MAX_FINDINGS = 256
"""Findings of one answer: a kilobyte each, and a message has at most a megabyte."""

AFFINITY = "service-affinity-one-backend"
"""The finding that whoever asks makes of what nodes say (:class:`AffinityClients`)."""
MAX_AFFINITIES = 32
MAX_BACKENDS = 64
MAX_CLIENTS = 256

Fault = Literal["nodes-apart", "policy", "service", "dns", "nodeport"]
"""Which of the five faults: pods of two nodes do not reach each other; a policy does not bite; a Service is slow or
silent; names are not answered; a NodePort is not reached."""

Kind = Literal["all", "connection", "node", "service", "policy", "dns"]
"""What is looked at."""

Where = Literal[
    "route",
    "neighbour",
    "netfilter",
    "setting",
    "device",
    "map",
    "counter",
    "socket",
    "packet",
    "clock",
    "agent",
    "object",
    "report",
]
"""What was looked at, where expectation and observation part: a route or a rule of the routing tables, a neighbour
entry, a rule of nftables or iptables, a sysctl, an interface, an entry of an eBPF map, a counter, a socket, a packet
that was sent or is missing, a clock, an agent itself, a Kubernetes object, what a server says of itself."""

AGENT, HOST, NETWORK, KERNEL, OBJECT, EFFECT = 10, 20, 30, 40, 50, 90
"""Usual values of :attr:`Finding.precedence`: an agent does not work; what somebody set on the host; the network
between nodes; what the kernel has; what an object asks for; what is seen of any of these (packets are missing)."""


class DoctorRequest(msgspec.Struct, frozen=True):
    """``$SRV.FINDINGS`` → :class:`Findings`, from each agent."""

    kind: Kind = "all"
    name: str = ""
    """Of a node; ``namespace/name`` of a Service or a policy."""
    source: str = ""
    """Of a connection: ``namespace/pod`` or an address."""
    destination: str = ""
    port: int = 0
    protocol: int = 6
    """IANA number."""
    standing: bool = False
    """Only what the standing check knows already is asked for: nothing is looked at, and all else is left aside."""


class Expected(msgspec.Struct, frozen=True):
    """What should be."""

    text: str
    object: str = ""
    """What asks for it: ``IPPool default``, ``Service shop/web``, ``Node n2``; empty: the mesh itself."""
    revision: str = ""
    """The object's resource version, or the revision of policy."""


class Observed(msgspec.Struct, frozen=True):
    """What is, in the words of the kernel or of whoever was asked."""

    where: Where
    text: str


class Fix(msgspec.Struct, frozen=True):
    """A command that ends the cause."""

    command: str
    """A line for a shell."""
    risk: str
    """What it may do to others, in one sentence."""
    on: Literal["node", "cluster"] = "node"
    """Where it is run: on the finding's node, or wherever `kubectl` is."""
    automatic: bool = False
    """`airmesh doctor --fix` may run it: it only removes or resets what the finding shows, and :attr:`undo` restores
    that."""
    undo: str = ""
    """The command that takes it back."""


class Finding(msgspec.Struct, frozen=True):
    """One thing that is wrong."""

    code: str
    """Stable name of the variant, e.g. ``route-shadowed``: also the name of its page in ``docs/faults``."""
    fault: Fault
    about: str
    """What it is about, as :func:`node_name`, :func:`pair_name` and :func:`object_name` write it."""
    cause: str
    """One sentence."""
    expected: Expected
    observed: tuple[Observed, ...]
    """The evidence; what parts from :attr:`expected` first."""
    fixes: tuple[Fix, ...]
    node: str = ""
    """Where it was seen; empty: nowhere in particular."""
    affects: tuple[str, ...] = ()
    """What else fails by it, written as :attr:`about` is."""
    since: int = 0
    """Unix seconds of its node, as the check knows it, else when the standing check saw it first; 0: not known."""
    change: str = ""
    """The change that came just before :attr:`since`, if one is known: of an object that has to do with it."""
    precedence: int = KERNEL
    """Of two findings that share what they are about or affect, the lower one is the cause of the other."""


def object_of(finding: Finding) -> tuple[str, str, str]:
    """Kind, namespace and name of the Kubernetes object that a finding is told on: what it is about, else its node.

    The kind may be none of Kubernetes (``Agent policy``); all are empty where there is no node either.
    """
    kind, _, name = finding.about.partition(" ")
    if name and kind != "Pair":
        namespace, _, rest = name.rpartition("/")
        return kind, namespace, rest
    return ("Node", "", finding.node) if finding.node else ("", "", "")


def reason_of(code: str) -> str:
    """A finding's code in CamelCase, as reasons of Kubernetes' Events and conditions are written."""
    return "".join(word.capitalize() for word in code.split("-"))


def remedy_of(finding: Finding) -> str:
    """The first of its fixes, else where to look."""
    return finding.fixes[0].command if finding.fixes else "airmesh doctor shows the evidence"


class AffinityClients(msgspec.Struct, frozen=True):
    """What one node sees of the clients of a Service port with session affinity ``ClientIP``: no finding by itself,
    since what is chance on one node is a fault only of all together.
    """

    service: str
    """``namespace/name``."""
    port: int
    protocol: int
    """IANA number."""
    family: int
    """4 or 6."""
    seconds: int
    """How long a client keeps its backend after its last connection."""
    backends: tuple[str, ...]
    """``address:port`` of those that new clients are given, each by the same chance; at most :data:`MAX_BACKENDS`."""
    pods: tuple[int, ...]
    """Clients that are network namespaces of this node (pods, and the node itself), by backend."""
    outside: tuple[tuple[str, int], ...] = ()
    """Clients from outside by address, each with the index of its backend: the first :data:`MAX_CLIENTS`."""
    flows: int = 0
    """Flows from outside that this node translates now."""
    busiest: str = ""
    """The address that most of them come from."""
    busiest_flows: int = 0


class Unchecked(msgspec.Struct, frozen=True):
    """A check that could not be made."""

    check: str
    why: str


class Findings(msgspec.Struct, frozen=True):
    """What one agent answers."""

    at_ms: int
    """Its clock when it was asked: milliseconds since 1970."""
    findings: tuple[Finding, ...] = ()
    checked: tuple[str, ...] = ()
    """Codes that were looked for, found or not."""
    unchecked: tuple[Unchecked, ...] = ()
    left_out: int = 0
    """Findings that found no room in this answer."""
    affinities: tuple[AffinityClients, ...] = ()
    """What the one who asks joins; at most :data:`MAX_AFFINITIES`."""


def node_name(node: str) -> str:
    """``Node n1``."""
    return f"Node {node}"


def pair_name(one: str, other: str) -> str:
    """``Pair n1 n2``: the two in the order of their names."""
    return f"Pair {min(one, other)} {max(one, other)}"


def object_name(kind: str, namespace: str, name: str) -> str:
    """``Service shop/web``; without a namespace ``IPPool default``."""
    return f"{kind} {namespace}/{name}" if namespace else f"{kind} {name}"
