"""The names of an installation: namespace, labels, Secrets, ConfigMaps. Pure; the manifests say the same ones."""

from __future__ import annotations

from hashlib import blake2b

NAMESPACE = "airmesh-system"
PART_OF = "app.kubernetes.io/part-of"
NAME = "app.kubernetes.io/name"
OURS = f"{PART_OF}=airmesh"
"""Label selector of everything that an installation is made of."""
BUS = "nats"
"""What the bus' objects are labelled with (app.kubernetes.io/name)."""
BUS_NODE = "node.airmesh.io/bus"
"""Label of the nodes that carry a server of the bus."""
JOB = "airmesh.io/job"
"""Label of what runs once on each node: which work it is."""
REVISION = "airmesh.io/revision"
"""Label of the ConfigMaps that hold what was applied: the number."""
CHECKSUM = "airmesh.io/checksum"
"""Annotation of pods: they start again when what they read at their start has changed."""

BUS_CONFIG = "airmesh-nats"
BUS_TLS = "airmesh-nats-tls"
BUS_SECRET = "airmesh-nats-authority"  # noqa: S105 - a name
"""Secret of the authority's key, and of what the servers know each other by."""
AUTHORITY = "airmesh-bus-authority"
"""ConfigMap with the authority's certificate, for the agents."""
OPERATOR = "airmesh-nats-operator"
"""Secret of the seed that signs the bus' accounts, and of who hands them to the servers. No pod is given the seed."""
BOOTSTRAP = "airmesh-bootstrap"
"""Secret of the token by which a node that has no key may ask for one."""
ADMISSION = "airmesh-admission"
"""Secret by which `cluster` lets nodes onto the bus: a key that servers take for the operator's. It is `cluster`'s."""
SINCE = "airmesh.io/keys-since"
"""Annotation of a Secret whose keys are being replaced: from which second on keys are good, by entry."""
STARTED = "airmesh.io/started-with"
"""Annotation of the Secret of the servers' certificate where they were given it while they ran: its digest, and of the
one that they were started with.
"""
BUS_ACCOUNTS = "airmesh.io/bus-accounts"
"""Annotation of the servers' pods: `signed` where they trust the operator; absent where a file lists their users."""
PERSONS = frozenset({"cli"})
"""Roles that no workload has."""
OPTIONS = "airmesh-options"
"""ConfigMap of what `install` was given, so that it need not be given again."""
_LONGEST = 253


def seed_secret(role: str) -> str:
    """Secret of a role's seed, key `seed`."""
    return f"airmesh-seed-{role}"


def node_secret(node: str) -> str:
    """Secret of the seeds of a node's agents, keys `routing.seed` and `dataplane.seed`."""
    return _bounded(f"airmesh-node-{node}")


def job(work: str, node: str, about: str) -> str:
    """Name of the Job that does `work` on a node; another one when what it is `about` has changed."""
    return f"airmesh-{work}-{digest(node, about)}"


def digest(*parts: str) -> str:
    """Twelve characters for these texts."""
    return blake2b("\0".join(parts).encode(), digest_size=6).hexdigest()


def _bounded(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 13]}-{digest(name)}"
