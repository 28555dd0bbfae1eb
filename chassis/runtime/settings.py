"""Settings: a frozen dataclass per service, read once from the environment and from nowhere else.

A field ``foo_bar`` is read from ``AIRMESH_FOO_BAR``. A field without a default must be set. Types understood:
``str``, ``int``, ``float``, ``bool``, ``Path``, ``Secret``, ``tuple[X, ...]`` (comma-separated), IPv4/IPv6 addresses
and networks, ``Literal`` and ``X | None`` (unset or empty text is ``None``). Whatever cannot be used ends the start
with one line: the variable, its value, the remedy. Units stand in each field's docstring.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from chassis.faults import SettingsFault
from chassis.secret import Secret
from proto import net
from proto.codec import encode_segment

PREFIX = "AIRMESH_"
MAX_TEXT = 4096
"""Longest value that is read, in characters."""

S = TypeVar("S")


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseSettings:
    """What every service is told."""

    nats_url: str = "nats://127.0.0.1:4222"
    """Servers of the bus, comma-separated."""

    nats_seed_file: Path
    """File with the nkey seed of this service's user, or its NATS credentials; mode 0600, read at each connect."""

    nats_ca_file: Path | None = None
    """Certificate of the authority that signed the servers' (PEM), read at each connect; unset: no TLS."""

    nats_user: str
    """Name of that user: the role, or role-node (node as it is, or encoded as in keys)."""

    instance: str = ""
    """Unique name of this copy; empty: ``<service>-<hostname>-<pid>``."""

    health_port: int = 0
    """Loopback port of /livez, /readyz and /metrics; 0: any free one, told in the log and by the micro service."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level that is logged."""

    checks_every: float = 120.0
    """Seconds between two looks of the standing check (docs/doctor.md), a quarter more or less; 0: none."""

    @property
    def bus_user(self) -> str:
        """The user's name as the bus has it: replies come to ``_INBOX.<this>``. A name that is encoded has no dot."""
        return encode_segment(self.nats_user) if "." in self.nats_user else self.nats_user


def load(kind: type[S], environ: Mapping[str, str]) -> S:
    """Settings of ``kind`` from an environment; raises :class:`SettingsFault`."""
    hints = get_type_hints(kind)
    values: dict[str, object] = {}
    for field in fields(kind):  # type: ignore[arg-type]
        variable = PREFIX + field.name.upper()
        text = environ.get(variable)
        if text is None:
            if not _has_default(field):
                raise SettingsFault(variable, None, f"set it to {_describe(hints[field.name])}")
            continue
        values[field.name] = _parse(variable, text, hints[field.name])
    return kind(**values)


def default_instance(service: str) -> str:
    """``<service>-<hostname>-<pid>``."""
    return f"{service}-{socket.gethostname()}-{os.getpid()}"


def _has_default(field: Field[Any]) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


_YES = frozenset({"1", "true", "yes", "on"})
_NO = frozenset({"0", "false", "no", "off"})


def _bool(text: str) -> bool:
    lowered = text.lower()
    if lowered in _YES:
        return True
    if lowered in _NO:
        return False
    raise ValueError(text)


def _whole(text: str) -> int:
    """No setting counts below nothing."""
    number = int(text)
    if number < 0:
        raise ValueError(text)
    return number


def _number(text: str) -> float:
    """Seconds, rates, shares. With "nan" every comparison would be false: an address would never rest."""
    number = float(text)
    if not 0 <= number < float("inf"):
        raise ValueError(text)
    return number


_PARSERS: dict[object, tuple[Callable[[str], object], str]] = {
    str: (str, "text"),
    int: (_whole, "a whole number, 0 or more"),
    float: (_number, "a number, 0 or more"),
    bool: (_bool, "true or false"),
    Path: (Path, "a path"),
    Secret: (Secret, "a secret"),
    IPv4Address: (IPv4Address, "an IPv4 address"),
    IPv6Address: (IPv6Address, "an IPv6 address"),
    IPv4Network: (IPv4Network, "an IPv4 network"),
    IPv6Network: (IPv6Network, "an IPv6 network"),
    net.Address: (ip_address, "an IP address"),
    net.Network: (ip_network, "an IP network such as 10.0.0.0/8"),
    frozenset((IPv4Address, IPv6Address)): (ip_address, "an IP address"),
    frozenset((IPv4Network, IPv6Network)): (ip_network, "an IP network such as 10.0.0.0/8"),
}


def _alternatives(hint: object) -> tuple[object, bool]:
    """The hint without ``None``, as a key of ``_PARSERS``, and whether ``None`` was among it."""
    if get_origin(hint) not in (Union, UnionType):
        return hint, False
    members = get_args(hint)
    rest = frozenset(member for member in members if member is not type(None))
    return (next(iter(rest)) if len(rest) == 1 else rest), len(rest) < len(members)


def _describe(hint: object) -> str:
    kind, _ = _alternatives(hint)
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(kind))
    if get_origin(kind) is tuple:
        return f"a comma-separated list, each {_describe(get_args(kind)[0])}"
    if kind in _PARSERS:
        return _PARSERS[kind][1]
    raise TypeError(f"a setting of type {hint} is not understood")


def _parse(variable: str, text: str, hint: object) -> object:
    kind, optional = _alternatives(hint)
    shown = "***" if kind is Secret else text
    if len(text) > MAX_TEXT:
        raise SettingsFault(variable, shown[:40] + "…", f"keep it within {MAX_TEXT} characters")
    if optional and not text:
        return None
    if get_origin(kind) is Literal:
        for choice in get_args(kind):
            if str(choice) == text:
                return choice
        raise SettingsFault(variable, shown, f"use {_describe(kind)}")
    if get_origin(kind) is tuple:
        parts = [part.strip() for part in text.split(",") if part.strip()]
        return tuple(_parse(variable, part, get_args(kind)[0]) for part in parts)
    remedy = _describe(kind)
    try:
        return _PARSERS[kind][0](text)
    except ValueError as error:
        raise SettingsFault(variable, shown, f"use {remedy}") from error
