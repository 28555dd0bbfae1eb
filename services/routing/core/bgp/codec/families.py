"""Address families in messages: AFI in two octets, SAFI in one (RFC 4760 3)."""

from __future__ import annotations

from services.routing.core.bgp.values import Family


def write_family(family: Family) -> bytes:
    """AFI and SAFI."""
    return family.afi.to_bytes(2) + bytes((family.safi,))


FAMILIES = {write_family(family): family for family in Family}
"""Families that are carried, by their octets."""
