"""Faults of a node's routes, each a sentence with its remedy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fault:
    """Something a person must know: what, and what to do."""

    fault: str
    remedy: str
    of_others: bool = False
    """It lies in what another node tells: a person must know, but this node does what it can and is ready."""
    about: tuple[str, str] | None = None
    """Kind (``IPPool``, ``FelixConfiguration``, ``BGPPeer``, ``BGPConfiguration``, ``Node``) and name of the object
    that asks for what cannot be done; it is told there too."""
    after: float = 0.0
    """Seconds that it must last before it is told: what passes by itself while nodes learn of each other is none."""
