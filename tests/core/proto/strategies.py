"""Hypothesis strategies for every message of the language, derived from the types themselves."""

from __future__ import annotations

import inspect
from ipaddress import ip_network
from types import ModuleType
from typing import Any, get_type_hints

import msgspec
from hypothesis import strategies as st

from proto import addresses, dns, events, flow, identity, leases, objects, policy, requests, routes, sync, traces
from proto.net import Address, Network

MODULES: tuple[ModuleType, ...] = (
    addresses, dns, events, flow, identity, leases, objects, policy, requests, routes, sync, traces,
)  # fmt: skip

MESSAGES: tuple[type[msgspec.Struct], ...] = tuple(
    sorted(
        {
            found
            for module in MODULES
            for _, found in inspect.getmembers(module, inspect.isclass)
            if issubclass(found, msgspec.Struct) and found is not objects.Kind and found.__module__ == module.__name__
        },
        key=lambda found: found.__name__,
    )
)
"""Every message type, also those that are only part of others."""

_addresses = st.ip_addresses()
_networks = st.builds(
    lambda address, length: ip_network((address, min(length, address.max_prefixlen)), strict=False),
    _addresses,
    st.integers(0, 128),
)
_strategies: dict[Any, st.SearchStrategy[Any]] = {
    Address: _addresses,
    Network: _networks,
    bytes: st.binary(max_size=40),
    int: st.integers(0, 2**63 - 1),
    float: st.floats(allow_nan=False),
    str: st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
}
for _base, _found in _strategies.items():
    st.register_type_strategy(_base, _found)


def values_of(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    """Any value of a message type."""
    hints = get_type_hints(kind)
    return st.builds(kind, **{name: _of(hints[name]) for name in kind.__struct_fields__})


def _of(hint: Any) -> st.SearchStrategy[Any]:
    origin = getattr(hint, "__origin__", None)
    if hint in _strategies:
        return _strategies[hint]
    if origin is tuple:
        parts = hint.__args__
        if parts[-1] is Ellipsis:
            return st.lists(_of(parts[0]), max_size=3).map(tuple)
        return st.tuples(*(_of(part) for part in parts))
    if inspect.isclass(hint) and issubclass(hint, msgspec.Struct):
        return values_of(hint)
    args = getattr(hint, "__args__", ())
    if type(None) in args:
        return st.one_of(st.none(), *(_of(part) for part in args if part is not type(None)))
    return st.from_type(hint)
