"""One full sample of any message type, the same at every run: each field has a value of its own."""

from __future__ import annotations

import inspect
from enum import Enum
from ipaddress import ip_address, ip_network
from typing import Any, Literal, get_args, get_origin, get_type_hints
from zlib import crc32

import msgspec

from proto.net import Address, Network


def sample_of(kind: type[msgspec.Struct], path: str = "") -> Any:
    """A value with every field filled."""
    hints = get_type_hints(kind)
    where = path or kind.__name__
    return kind(**{name: _value(hints[name], f"{where}.{name}") for name in kind.__struct_fields__})


def _value(hint: Any, path: str) -> Any:
    number = crc32(path.encode())
    plain: dict[Any, Any] = {
        str: path.rsplit(".", 1)[-1] + f"-{number % 100}",
        int: number,
        float: number % 10_000 / 8,
        bool: True,
        bytes: number.to_bytes(6, "big"),
    }
    if hint is Address:
        return ip_address(0x0AF40000 + number % 65536) if number % 2 else ip_address((0xFD << 120) + number)
    if hint is Network:
        return ip_network("10.244.7.0/26") if number % 2 else ip_network("fd00:10:244::/122")
    if hint in plain:
        return plain[hint]
    return _compound(hint, path, number)


def _compound(hint: Any, path: str, number: int) -> Any:
    if get_origin(hint) is tuple:
        parts = get_args(hint)
        if parts[-1] is Ellipsis:
            return tuple(_value(parts[0], f"{path}.{index}") for index in range(2))
        return tuple(_value(part, f"{path}.{index}") for index, part in enumerate(parts))
    if get_origin(hint) is dict:
        names, values = get_args(hint)
        return {_value(names, f"{path}.{index}"): _value(values, f"{path}.{index}.value") for index in range(2)}
    if get_origin(hint) is Literal:
        return get_args(hint)[number % len(get_args(hint))]
    if inspect.isclass(hint) and issubclass(hint, Enum):
        return list(hint)[number % len(hint)]
    if inspect.isclass(hint) and issubclass(hint, msgspec.Struct):
        return sample_of(hint, path)
    return _value(next(part for part in get_args(hint) if part is not type(None)), path)
