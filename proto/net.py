"""Addresses and networks of either family as field types of messages.

To a type checker ``Address`` is ``IPv4Address | IPv6Address``. At run time it is one abstract class with both as
virtual subclasses, because msgspec takes only one custom type in a union; ``isinstance`` works with it, ``match`` on
the concrete classes as always. On the wire both are their usual text.
"""

from __future__ import annotations

from abc import ABC
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    Address = IPv4Address | IPv6Address
    Network = IPv4Network | IPv6Network
else:

    class Address(ABC):  # noqa: B024 - a name for two classes
        """IPv4Address or IPv6Address."""

    class Network(ABC):  # noqa: B024 - a name for two classes
        """IPv4Network or IPv6Network."""

    Address.register(IPv4Address)
    Address.register(IPv6Address)
    Network.register(IPv4Network)
    Network.register(IPv6Network)

Family = Literal[4, 6]
"""Version of the Internet Protocol."""

_ADDRESSES: tuple[object, ...] = (Address, IPv4Address, IPv6Address)
_NETWORKS: tuple[object, ...] = (Network, IPv4Network, IPv6Network)

MAX_TEXT = 64
"""Longest text of an address or network that is parsed."""


def host_port(host: object, port: int | str) -> str:
    """``10.0.0.1:80`` or ``[fd00::1]:80``, of an address or a name (RFC 3986, 3.2.2)."""
    text = str(host)
    return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"


def to_wire(value: object) -> object:
    """Msgspec ``enc_hook``: an address or network as text."""
    if isinstance(value, IPv4Address | IPv6Address | IPv4Network | IPv6Network):
        return str(value)
    raise NotImplementedError(f"no wire form for {type(value).__name__}")


def from_wire(kind: type, value: object) -> object:
    """Msgspec ``dec_hook``; raises ValueError for text that is none (host bits set in a network are refused)."""
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise ValueError(f"expected the text of an address, got {type(value).__name__}")
    if kind in _ADDRESSES:
        return ip_address(value)
    if kind in _NETWORKS:
        return ip_network(value)
    raise NotImplementedError(f"no wire form for {kind.__name__}")
