"""Residents: which identities may live on a node (values of ``identities._residents.<node>``)."""

from __future__ import annotations

import msgspec

from proto.policy import Revision

RESIDENTS_PREFIX = "_residents"
RESIDENTS_SCOPE = "residents"
"""Scope of the completeness marker which says that every node's :class:`Residents` are there. A release of ``policy``
that does not publish them never writes it."""


class Residents(msgspec.Struct, frozen=True):
    """Value of ``identities._residents.<node>``: the identities of the node's pods, by their objects; no key: none.

    An endpoint that names another one is not believed. An identity stays for a while after its last pod has left.
    """

    identities: tuple[int, ...]
    """Sorted."""
    revision: Revision
    """Of ``objects``, when they last changed."""


def residents_key(node_segment: str) -> str:
    """Key of a node's :class:`Residents`; ``node_segment`` encoded."""
    return f"{RESIDENTS_PREFIX}.{node_segment}"
