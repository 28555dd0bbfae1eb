"""What a top-of-rack switch offers the nodes behind it: passwords, and what follows from a lost BFD session.

Values alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Bfd(StrEnum):
    """What a switch does when BFD loses a node.

    A node's BFD may share the fate of its BGP speaker (no C bit, RFC 5882 4.3.2): then its loss says as well that the
    speaker has died as that the link has. One of them is taken for granted.
    """

    OFF = "off"
    """No BFD is spoken."""
    ON = "on"
    """The node cannot be reached: its routes go at once."""
    GRACEFUL = "graceful"
    """The speaker restarts: the node's routes stay for as long as it has asked for (RFC 4724)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sessions:
    """How a switch holds sessions with nodes."""

    bfd: Bfd = Bfd.GRACEFUL
    passwords: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Of TCP-MD5 (RFC 2385), by host; hosts that are not in it have none."""
