"""Every subject and bucket, who writes which key, and who may ask, answer and listen: the one table of the bus.

The NATS servers' allow-lists are generated from :data:`ROLES` (``chassis.bus.nats_config``), so what this table does
not grant, nobody can do. ``{node}`` in a prefix is the encoded node name of the user.
"""

from __future__ import annotations

from dataclasses import dataclass

from proto.codec import MAX_VALUE
from proto.slots import SLOT, SLOTS

MAJOR = "v1"
ROOT = f"airmesh.{MAJOR}"

# Asked by nodes: each on a subject of its own, see :func:`of_node`.
IPAM_BLOCK = f"{ROOT}.ipam.block"
IPAM_REPORT = f"{ROOT}.ipam.report"
IPAM_CLAIM = f"{ROOT}.ipam.claim"
IPAM_RELEASE = f"{ROOT}.ipam.release"
IPAM_SHOW = f"{ROOT}.ipam.show"
POLICY_EXPLAIN = f"{ROOT}.policy.explain"
POLICY_MATRIX = f"{ROOT}.policy.matrix"
DNS_CHANGE = f"{ROOT}.dns.change"
CLUSTER_ADMIT = f"{ROOT}.cluster.admit"

OF_NODES = (IPAM_BLOCK, IPAM_REPORT, IPAM_CLAIM, IPAM_RELEASE)
"""Subjects of requests that end with the asking node."""

JETSTREAM = f"{ROOT}.jetstream"
"""The JSON API of JetStream as every account spells it that has no streams of its own."""
INBOX = "_INBOX"
DISCOVERY = "$SRV.>"
"""What is asked of all services (NATS micro, ADR-32)."""
SPANS = "$SRV.SPANS"
"""Asked of all services as their discovery is, by whoever may ask that: ``proto.traces.SpansRequest``."""
PAIRS = "$SRV.PAIRS"
"""Asked of all routing agents likewise: ``proto.pairs.PairsRequest``."""
BGP = "$SRV.BGP"
"""Asked of all routing agents likewise: ``proto.bgp.BgpSessionsRequest``."""
BGP_ROUTES = "$SRV.BGP-ROUTES"
"""Asked of all routing agents, and answered by one: ``proto.bgp.BgpRoutesRequest``."""
BGP_CAPTURE = "$SRV.BGP-CAPTURE"
"""Asked of all routing agents as their discovery is: ``proto.bgp_capture.BgpCaptureRequest``."""
FINDINGS = "$SRV.FINDINGS"
"""Asked of all services as their discovery is, and answered by each for its part: ``proto.findings.DoctorRequest``."""
DNS_PODS = "$SRV.DNS-PODS"
"""Asked of all dataplane agents likewise: ``proto.dns_pods.PodDnsRequest``."""
PROBES = "$SRV.PROBES"
"""Asked of all dataplane agents, and answered by one: ``proto.probes.ProbeRequest``."""

EVENTS = f"{ROOT}.events"
FLOWS = f"{ROOT}.flows"


OBJECT_FAULT = "object-fault"
FINDING = "finding"
"""What the standing check of an agent tells: ``proto.events.FindingEvent``."""
BGP_STATUS = f"{EVENTS}.routing.bgp-status.*"
"""Where ``cluster`` hears what it writes to CalicoNodeStatus: ``heard_subject("routing", "bgp-status")``."""


def of_node(subject: str, node_segment: str) -> str:
    """The subject on which one node asks, and no other may; ``node_segment`` encoded."""
    return f"{subject}.{node_segment}"


def without_node(subject: str) -> str:
    """The subject of a request as all nodes have it in common: what :func:`of_node` was given."""
    return ".".join(subject.split(".", 4)[:4])


def event_subject(service: str, what: str) -> str:
    """``airmesh.v1.events.<service>.<what>``, as the service says it; heard as :func:`heard_subject`.

    Raises ValueError for an object fault: its subject names who speaks.
    """
    if what == OBJECT_FAULT:
        raise ValueError("object faults are told on object_fault_subject()")
    return f"{EVENTS}.{service}.{what}"


def heard_subject(service: str, what: str, node_segment: str = "*") -> str:
    """Subject on which others hear an event: with the (encoded) node after it for a service of each node.

    The server puts the node there, by whose key it was said (``chassis.bus.accounts``). ``*`` is every node.
    """
    each = any(role.name == service and role.per_node for role in ROLES)
    return ".".join((EVENTS, service, what, *([node_segment] if each else [])))


def node_of(subject: str) -> str | None:
    """Encoded node whose key an event or flow was sent with; None when none of a node's services sends there."""
    tokens = subject.split(".")
    if subject.startswith(f"{FLOWS}.") and len(tokens) == FLOWS.count(".") + 3:
        return tokens[-2]
    return tokens[-1] if subject.startswith(f"{EVENTS}.") and len(tokens) == EVENTS.count(".") + 4 else None


def object_fault_subject(service: str, node_segment: str = "") -> str:
    """``airmesh.v1.events.<service>.object-fault``, and for a service of each node its (encoded) node after it: the
    server grants each node its own subject alone, so that who speaks is known by the key.
    """
    return ".".join((EVENTS, service, OBJECT_FAULT, *([node_segment] if node_segment else [])))


def speaker_of(subject: str, what: str = OBJECT_FAULT) -> tuple[str, str] | None:
    """Service and encoded node whose key an object fault, or a :data:`FINDING`, on ``subject`` was told with; None when
    the server grants that subject to nobody, or to every node of a service.
    """
    service, _, rest = subject.removeprefix(f"{EVENTS}.").partition(".")
    kind, _, node = rest.partition(".")
    spoken = any(role.name == service and role.publishes and role.per_node == bool(node) for role in ROLES)
    return (service, node) if kind == what and spoken and "." not in node else None


def flow_subject(node_segment: str, verdict: str) -> str:
    """``airmesh.v1.flows.<node>.<verdict>``; ``node_segment`` encoded, verdict ``dropped`` or ``forwarded``."""
    return f"{FLOWS}.{node_segment}.{verdict}"


def discovery_inbox(user: str) -> str:
    """Where ``user`` has the answers sent to what it asks on ``$SRV``: ``<this>.<token>``.

    They arrive as ``<this>.<user who answers>.<token>``; the server puts the name in.
    """
    return f"{INBOX}.{user}.srv"


@dataclass(frozen=True, slots=True)
class Bucket:
    """One KV bucket; its name on the server carries the major version."""

    name: str
    max_bytes: int
    """Over this a write is refused (discard new): a runaway writer gets an error, not others' keys."""
    purpose: str
    max_value: int = MAX_VALUE + 1024
    """Bytes of a value with its envelope and headers; a larger one is refused. What is honest needs half at most."""
    slots: bool = False
    """Each node has :data:`proto.slots.SLOTS` keys below ``<node>.slot``, whatever it writes there."""

    @property
    def renamed(self) -> tuple[str, str] | None:
        """Subjects that the stream renames, and to what (:mod:`proto.slots`); None where each key stands as written."""
        if not self.slots:
            return None
        return self.subject(f"*.{SLOT}.*"), self.subject(f"{{{{wildcard(1)}}}}.{SLOT}.{{{{partition({SLOTS},2)}}}}")

    @property
    def on_server(self) -> str:
        """Name of the bucket on the NATS server."""
        return f"{self.name}_{MAJOR}"

    @property
    def stream(self) -> str:
        """Name of its stream (JetStream ADR-8)."""
        return f"KV_{self.on_server}"

    def subject(self, key: str) -> str:
        """Subject that a key or a pattern of keys is written under (JetStream ADR-8); of ``""`` what all begin with."""
        return f"$KV.{self.on_server}.{key}"


_KIB, _MIB = 1 << 10, 1 << 20
OBJECTS = Bucket("objects", 512 * _MIB, "mirror of Kubernetes objects")
BLOCKS = Bucket("blocks", 64 * _MIB, "address blocks and who holds them")
OWNERS = Bucket("owners", 64 * _MIB, "owners and the addresses they keep")
CLAIMS = Bucket("claims", 64 * _MIB, "kept addresses and who holds them now")
ENDPOINTS = Bucket("endpoints", 512 * _MIB, "pod interfaces and their addresses", 2 * _KIB, slots=True)
IDENTITIES = Bucket("identities", 256 * _MIB, "what an identity stands for")
RULES = Bucket("rules", 512 * _MIB, "compiled policy and its frontier")
ACKS = Bucket("acks", 16 * _MIB, "what each node's kernel holds", 2 * _KIB)
LEASES = Bucket("leases", 16 * _MIB, "who is the active copy", 2 * _KIB)
ROUTES = Bucket("routes", 64 * _MIB, "what each node offers the others", 256 * _KIB)
DNS = Bucket("dns", 16 * _MIB, "CoreDNS decisions and reports")

BUCKETS: tuple[Bucket, ...] = (
    OBJECTS,
    BLOCKS,
    OWNERS,
    CLAIMS,
    ENDPOINTS,
    IDENTITIES,
    RULES,
    ACKS,
    LEASES,
    ROUTES,
    DNS,
)


@dataclass(frozen=True, slots=True)
class Grant:
    """A bucket and the key prefixes in it (``>`` = all; ``x`` = the key x and everything below ``x.``)."""

    bucket: Bucket
    prefixes: tuple[str, ...] = (">",)
    exact: bool = False
    """These keys alone, and nothing below them; ``*`` is any one segment. A node writes no others: their number is then
    a bound that the server keeps."""


@dataclass(frozen=True, slots=True)
class Role:
    """What one kind of user may do. Nothing else is allowed."""

    name: str
    per_node: bool = False
    """One user for each node, named ``<role>-<node>``, instead of one in all."""
    writes: tuple[Grant, ...] = ()
    reads: tuple[Grant, ...] = ()
    requests: tuple[str, ...] = ()
    """Subjects it may send requests to."""
    serves: tuple[str, ...] = ()
    """Subjects it answers."""
    discovered: tuple[str, ...] = ()
    """Subjects below ``$SRV`` that it answers beside its discovery and :data:`SPANS`."""
    publishes: tuple[str, ...] = ()
    listens: tuple[str, ...] = ()
    makes_buckets: bool = False
    shared: bool = False
    """It is nobody's own: many sign in as it, each by a token that expires. It is told nothing, and not discovered."""


_OF_NODES = (ENDPOINTS, ACKS, ROUTES)
"""Buckets whose keys are each node's own."""
_EVERYTHING = tuple(Grant(bucket) for bucket in BUCKETS)

ROLES: tuple[Role, ...] = (
    Role(
        "cluster",
        writes=(
            Grant(OBJECTS),
            Grant(LEASES, ("cluster",)),
            # It deletes what nodes that are gone have left; a grant cannot tell a deletion from a value.
            *(Grant(bucket) for bucket in _OF_NODES),
            *(Grant(bucket, ("_epoch",)) for bucket in BUCKETS if bucket not in (OBJECTS, *_OF_NODES)),
            Grant(LEASES, ("node",)),
        ),
        reads=_EVERYTHING,
        serves=(CLUSTER_ADMIT,),
        discovered=(FINDINGS,),
        publishes=(f"{EVENTS}.cluster.>",),
        listens=(
            f"{EVENTS}.*.{OBJECT_FAULT}",
            f"{EVENTS}.*.{OBJECT_FAULT}.*",
            f"{EVENTS}.*.{FINDING}",
            f"{EVENTS}.*.{FINDING}.*",
            BGP_STATUS,
        ),
        makes_buckets=True,
    ),
    Role(
        "ipam",
        writes=(Grant(BLOCKS), Grant(OWNERS), Grant(CLAIMS), Grant(LEASES, ("ipam",))),
        reads=(
            Grant(OBJECTS),
            Grant(BLOCKS),
            Grant(OWNERS),
            Grant(CLAIMS),
            Grant(LEASES),
            Grant(ACKS),
            Grant(ENDPOINTS),
        ),
        serves=(*(of_node(subject, "*") for subject in OF_NODES), IPAM_SHOW),
        discovered=(FINDINGS,),
        publishes=(f"{EVENTS}.ipam.>",),
    ),
    Role(
        "policy",
        writes=(Grant(IDENTITIES), Grant(RULES), Grant(LEASES, ("policy",))),
        reads=(Grant(OBJECTS), Grant(IDENTITIES), Grant(RULES), Grant(LEASES), Grant(ACKS)),
        serves=(POLICY_EXPLAIN, POLICY_MATRIX),
        discovered=(FINDINGS,),
        publishes=(f"{EVENTS}.policy.>",),
    ),
    Role(
        "dns",
        writes=(Grant(DNS), Grant(LEASES, ("dns",))),
        reads=(Grant(OBJECTS), Grant(DNS), Grant(LEASES)),
        requests=(POLICY_EXPLAIN,),
        discovered=(FINDINGS,),
        serves=(DNS_CHANGE,),
        publishes=(f"{EVENTS}.dns.>",),
    ),
    Role(
        "routing",
        per_node=True,
        writes=(Grant(ROUTES, ("{node}", "_complete.{node}"), exact=True),),
        reads=(
            Grant(ROUTES),
            Grant(CLAIMS),
            Grant(BLOCKS),
            Grant(
                OBJECTS,
                (
                    "core.node",
                    "core.service",
                    "discovery=2Ek8s=2Eio.endpointslice",
                    "crd=2Eprojectcalico=2Eorg.bgpconfiguration",
                    "crd=2Eprojectcalico=2Eorg.bgpfilter",
                    "crd=2Eprojectcalico=2Eorg.bgppeer",
                    "crd=2Eprojectcalico=2Eorg.caliconodestatus",
                    "crd=2Eprojectcalico=2Eorg.felixconfiguration",
                    "crd=2Eprojectcalico=2Eorg.ippool",
                    "_epoch",
                    "_complete",
                ),
            ),
        ),
        discovered=(PAIRS, BGP, BGP_ROUTES, BGP_CAPTURE, FINDINGS),
        publishes=(f"{EVENTS}.routing.*", f"{EVENTS}.routing.{OBJECT_FAULT}.{{node}}"),
    ),
    Role(
        "dataplane",
        per_node=True,
        writes=(
            Grant(ENDPOINTS, (f"{{node}}.{SLOT}.*", "_complete.{node}"), exact=True),
            Grant(ACKS, ("{node}", "_complete.{node}"), exact=True),
            Grant(LEASES, ("node.{node}",), exact=True),
        ),
        reads=(
            Grant(
                OBJECTS,
                (
                    "core.pod.{node}",
                    "core.namespace",
                    "core.node",
                    "core.service",
                    "discovery=2Ek8s=2Eio.endpointslice",
                    "crd=2Eprojectcalico=2Eorg.felixconfiguration",
                    "crd=2Eprojectcalico=2Eorg.ippool",
                    "_epoch",
                    "_complete",
                ),
            ),
            Grant(BLOCKS),
            Grant(CLAIMS),
            Grant(ROUTES),
            Grant(ENDPOINTS),
            Grant(IDENTITIES),
            Grant(RULES),
        ),
        requests=tuple(of_node(subject, "{node}") for subject in OF_NODES),
        discovered=(DNS_PODS, FINDINGS, PROBES),
        publishes=(f"{EVENTS}.dataplane.*", f"{EVENTS}.dataplane.{OBJECT_FAULT}.{{node}}", f"{FLOWS}.{{node}}.>"),
    ),
    Role(
        "cli",
        reads=_EVERYTHING,
        requests=(IPAM_SHOW, POLICY_EXPLAIN, POLICY_MATRIX, DNS_CHANGE, DISCOVERY),
        listens=(f"{EVENTS}.>", f"{FLOWS}.>"),
    ),
    # A node that has no key yet.
    Role("bootstrap", requests=(CLUSTER_ADMIT,), shared=True),
)


def role_of_user(user: str) -> tuple[Role, str]:
    """Role and encoded node of a user's name (``ipam``, ``dataplane-n1``); raises ValueError."""
    for role in ROLES:
        if user == role.name and not role.per_node:
            return role, ""
        if role.per_node and user.startswith(f"{role.name}-"):
            return role, user[len(role.name) + 1 :]
    raise ValueError(f"no role has a user {user!r}")
