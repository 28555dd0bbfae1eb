"""Whom a Corefile forwards which names to, as far as that are plain DNS servers with an address.

Source: coredns/plugin/forward (``forward FROM TO...``; an address may have ``dns://`` before and a port behind it).
What is asked over TLS and what stands in a file (``/etc/resolv.conf``) is left out, and so are zones whose name the
environment says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from proto.net import Address, host_port
from services.dns.core.caddyfile import Corefile

_DOMAIN = re.compile(r"\.|(?=.{1,253}\Z)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
_TARGET = re.compile(
    r"(?:dns://)?(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+)|([0-9A-Fa-f:]*:[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*))(?::(\d{1,5}))?"
)


@dataclass(frozen=True, slots=True, order=True)
class Upstream:
    """A server that names below ``zone`` are asked of."""

    zone: str
    """``.`` for all, else without the dot at its end."""
    address: str
    port: int = 53

    @property
    def ip(self) -> Address:
        """Its address."""
        return ip_address(self.address)

    def __str__(self) -> str:
        """``10.0.0.9`` or ``10.0.0.9:5353``; IPv6 in brackets with a port."""
        if self.port == 53:
            return self.address
        return host_port(self.address, self.port)


def upstreams(corefile: Corefile) -> tuple[Upstream, ...]:
    """All of them, each once, sorted."""
    return tuple(sorted(set(_found(corefile))))


def _found(corefile: Corefile) -> Iterator[Upstream]:
    for block in corefile.servers:
        zones = _zones(block.keys)
        for line in block.lines:
            if line.name != "forward" or len(line.args) < 2:
                continue
            for zone in zones if line.args[0] == "." else _zones(line.args[:1]):
                for target in line.args[1:]:
                    match = _TARGET.fullmatch(target)
                    if match is not None:
                        yield from _upstream(zone, match)


def _upstream(zone: str, match: re.Match[str]) -> Iterator[Upstream]:
    written = match[1] or match[2] or match[3]
    try:
        yield Upstream(zone, str(ip_address(written)), int(match[4] or 53))
    except ValueError:
        return  # CoreDNS refuses it, and so does nobody here ask it


def _zone(key: str) -> str:
    """Of a server block's key: without scheme and port."""
    bare = re.sub(r":\d+$", "", key.removeprefix("dns://"))
    return bare.rstrip(".").lower() or "."


def _zones(keys: Iterable[str]) -> list[str]:
    return [zone for key in keys if _DOMAIN.fullmatch(zone := _zone(key))]
