"""Which packets must be encrypted between nodes: the flags of ``am_config``, by family of pods' packets.

It fails closed: once encryption is asked for, the flags stay while the bus is away, over restarts and reboots, and only
the word of FelixConfiguration, known to be all there is, takes them away. So as not to cut what lives when it is asked
for: the way out is closed once ``routing`` has no route left that goes in the clear, the way in when that has lasted
for :data:`PATIENCE`, since the other end of a pair moves a moment later.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field

from services.dataplane.core.datapath.layout import ConfigFlag

PATIENCE = 10.0
"""Seconds."""
FAMILIES = (4, 6)
_OUT = {4: ConfigFlag.ENCRYPT4, 6: ConfigFlag.ENCRYPT6}
_IN = {4: ConfigFlag.REFUSE_PLAIN4, 6: ConfigFlag.REFUSE_PLAIN6}
ENCRYPTION = ConfigFlag.ENCRYPT4 | ConfigFlag.ENCRYPT6 | ConfigFlag.REFUSE_PLAIN4 | ConfigFlag.REFUSE_PLAIN6


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known now."""

    asked: Set[int] = frozenset()
    """Families for which FelixConfiguration asks, as far as it is here."""
    is_known: bool = False
    """Whether all of FelixConfiguration is here, so that what it does not ask for nobody asks for."""
    prohibited: Set[int] = frozenset()
    """Families of which the kernel's table refuses what is not encrypted."""
    plain: Set[int] = frozenset()
    """Families of which some packets still go to other nodes in the clear."""


@dataclass(frozen=True, slots=True)
class Encryption:
    """Families, by how far it is."""

    out: frozenset[int] = frozenset()
    """What leaves is encrypted, or dropped."""
    both: frozenset[int] = frozenset()
    """What arrives in the clear is dropped, too."""
    since: tuple[tuple[int, float], ...] = field(default=(), compare=False)
    """Since when the way out has been closed without a way in the clear left (monotonic seconds), by family."""

    @property
    def flags_of_gateway(self) -> ConfigFlag:
        """A gateway takes in what comes in the clear: of what pods send to an API server a node encrypts as much as it
        has a way for.
        """
        return self.flags & ~(ConfigFlag.REFUSE_PLAIN4 | ConfigFlag.REFUSE_PLAIN6)

    @property
    def flags(self) -> ConfigFlag:
        """The flags of it."""
        flags = ConfigFlag(0)
        for family in FAMILIES:
            flags |= _OUT[family] if family in self.out else ConfigFlag(0)
            flags |= _IN[family] if family in self.both else ConfigFlag(0)
        return flags

    @property
    def remaining(self) -> bool:
        """Whether the way in of some family is still to be closed."""
        return self.out != self.both


def judge(before: Encryption, facts: Facts, now: float) -> Encryption:
    """What holds from now on."""
    kept = facts.asked | facts.prohibited | before.out | before.both
    required = facts.asked if facts.is_known else kept
    out = frozenset(family for family in required if family in before.out or family not in facts.plain)
    known = dict(before.since)
    since = {family: known.get(family, now) for family in out if family not in facts.plain}
    lasting = {family for family, began in since.items() if now - began >= PATIENCE}
    both = frozenset(family for family in out if family in before.both or family in lasting)
    return Encryption(out, both, tuple(sorted(since.items())))


def of_flags(flags: ConfigFlag) -> Encryption:
    """As the flags of a map say it, before anything else is known."""
    out = frozenset(family for family in FAMILIES if _OUT[family] & flags)
    return Encryption(out, frozenset(family for family in FAMILIES if _IN[family] & flags) & out)


def written(encryption: Encryption) -> bytes:
    """The families as they are kept in a file."""
    return " ".join(map(str, sorted(encryption.out))).encode() + b"\n"


def read(text: bytes) -> Encryption:
    """Inverse of :func:`written`, for a node that has booted: both ways are closed. Whatever cannot be read asks for
    both families, since somebody had asked.
    """
    words = text.split()
    if any(word not in (b"4", b"6") for word in words):
        return Encryption(frozenset(FAMILIES), frozenset(FAMILIES))
    families = frozenset(map(int, words))
    return Encryption(families, families)
