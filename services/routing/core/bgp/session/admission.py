"""Which connections a BGP listener takes: those of configured peers, each at a bounded rate."""

from __future__ import annotations

from collections.abc import Mapping

from proto.net import Address

Source = tuple[Address, str]
"""A peer's address, and the interface for a link-local one (else empty)."""

PER_SECOND, BURST = 1.0, 5.0
"""Connections that are taken of one peer."""


class Admission:
    """A token bucket for each configured source; nothing is kept of any other."""

    def __init__(self) -> None:
        self._names: Mapping[Source, str] = {}
        self._tokens: dict[Source, tuple[float, float]] = {}
        """Tokens that were left, and when."""

    def follow(self, names: Mapping[Source, str]) -> None:
        """The configured sources, with their peers' names."""
        self._names = dict(names)
        self._tokens = {source: left for source, left in self._tokens.items() if source in names}

    def admit(self, source: Source, now: float) -> str | None:
        """The name of the peer that a connection belongs to; None: it is closed at once."""
        name = self._names.get(source)
        if name is None:
            return None
        tokens, at = self._tokens.get(source, (BURST, now))
        tokens = min(BURST, tokens + (now - at) * PER_SECOND)
        self._tokens[source] = max(0.0, tokens - 1) if tokens >= 1 else tokens, now
        return name if tokens >= 1 else None
