"""Networks of either family, compared without a thought for which."""

from __future__ import annotations

from proto.net import Network


def overlap(one: Network, other: Network) -> bool:
    """True when some address is in both; False for different families."""
    if one.version != other.version:
        return False
    shorter, longer = (one, other) if one.prefixlen <= other.prefixlen else (other, one)
    shift = shorter.max_prefixlen - shorter.prefixlen
    return int(shorter.network_address) >> shift == int(longer.network_address) >> shift
