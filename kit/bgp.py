"""BGP: whether this release speaks it, and the numbers that hold where nothing is set. The one switch for it.

Whoever must know asks here: ``cluster`` (an object that asks for BGP is read, and says that it is not honoured as long
as nobody serves it), ``routing`` (whether there is a speaker at all). Source: Calico's BGPConfiguration reference.
"""

from __future__ import annotations

SERVED: bool = True
"""Routing speaks BGP: BGPConfiguration, BGPPeer and BGPFilter are honoured."""

ASN = 64512
"""Autonomous system number of a node where nobody sets one: the first of those for private use (RFC 6996)."""
PORT = 179
"""TCP port of BGP (RFC 4271)."""
MOST_RESTART = 4095
"""Longest graceful restart time in seconds: the field has 12 bits (RFC 4724 3)."""
