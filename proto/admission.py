"""What a node that has no key on the bus asks, and what it is told.

A node makes its keys itself, and asks for a signature on the public one. It asks as the user ``bootstrap``, whose token
every node has; who it is, the token of its pod's ServiceAccount says, which the API server gave for that pod on that
node.
"""

from __future__ import annotations

from typing import Literal

import msgspec

AUDIENCE = "airmesh.io/admission"
"""Whom the ServiceAccount's token is for: the API server takes it for nothing else."""


class AdmissionRequest(msgspec.Struct, frozen=True):
    """``airmesh.v1.cluster.admit`` → :class:`Admission`: let a node's agent onto the bus by this key.

    The same asked again is answered the same but for the second in which it was signed.
    """

    node: str
    """Name of the Node."""
    role: str
    """``dataplane`` or ``routing``."""
    public: str
    """The agent's public nkey, ``U…``."""
    token: str
    """Of the pod that asks: a ServiceAccount's, bound to the pod, for :data:`AUDIENCE`."""
    replaces: Literal["", "beside", "now"] = ""
    """What becomes of the key that the agent has. Empty: it may be in use by nobody. ``beside``: both are good, until
    the new one is told of by ``jwt``. ``now``: it ends at once."""
    jwt: str = ""
    """What was answered to ``beside``: this key alone is to be good from now on, if nobody is connected by another."""


class Admission(msgspec.Struct, frozen=True):
    """The agent may sign in by its key."""

    jwt: str
    """What the agent's account says of the key (NATS user JWT)."""
