"""The published contract of one major version as plain data, what breaks it, and readers that know nothing newer.

A description names every message and every type that messages are made of, field by field: its type, and what it is
when it is absent (or that it must be there). Within a major version a message may only gain fields that have a default.
Everything else is a break, in one sentence that names the field: a reader of the release before would refuse the
bytes, or take them for something else.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum, IntEnum
from types import UnionType
from typing import Any, Literal, Optional, Union, cast, get_args, get_origin, get_type_hints

import msgspec

from proto import net

Contract = dict[str, dict[str, Any]]
"""By name: ``{"message": …, "array": …}`` of a message, ``{"enum": …}`` of an enumeration."""

PLAIN: dict[str, Any] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": bool,
    "bytes": bytes,
    "address": net.Address,
    "network": net.Network,
}
_NAMES = {kind: name for name, kind in PLAIN.items()}


def described(messages: Iterable[type[msgspec.Struct]]) -> Contract:
    """The messages and all that they are made of, sorted by name. Raises TypeError for two types of one name."""
    found: Contract = {}
    sources: dict[str, type] = {}

    def describe(kind: Any) -> None:
        if sources.setdefault(kind.__name__, kind) is not kind:
            raise TypeError(f"two types of the language are named {kind.__name__}")
        if kind.__name__ in found:
            return
        if Enum in kind.__mro__:
            found[kind.__name__] = {"enum": {member.name: member.value for member in cast(type[Enum], kind)}}
            return
        struct: Any = kind
        hints = get_type_hints(kind)
        fields: dict[str, Any] = {}
        found[kind.__name__] = {"array": struct.__struct_config__.array_like, "message": fields}
        for field in msgspec.structs.fields(struct):
            fields[field.name] = {"type": _type_of(hints[field.name], describe), **_absent(field)}

    for message in messages:
        describe(message)
    return dict(sorted(found.items()))


def _type_of(hint: Any, describe: Any) -> Any:
    if hint in _NAMES:
        return _NAMES[hint]
    origin, parts = get_origin(hint), get_args(hint)
    if origin is tuple and parts[-1] is Ellipsis:
        return {"list": _type_of(parts[0], describe)}
    if origin is tuple:
        return {"tuple": [_type_of(part, describe) for part in parts]}
    if origin is Literal:
        return {"literal": list(parts)}
    if origin in (Union, UnionType):
        (inner,) = (part for part in parts if part is not type(None))
        return {"optional": _type_of(inner, describe)}
    if inspect.isclass(hint) and issubclass(hint, msgspec.Struct | Enum):
        describe(hint)
        return {"of": hint.__name__}
    raise TypeError(f"the language has no type {hint!r}")


def _absent(field: msgspec.structs.FieldInfo) -> dict[str, Any]:
    if field.default is not msgspec.NODEFAULT:
        return {"absent": msgspec.to_builtins(field.default, enc_hook=net.to_wire)}
    if field.default_factory is not msgspec.NODEFAULT:
        return {"absent": msgspec.to_builtins(field.default_factory(), enc_hook=net.to_wire)}
    return {}


def breaks(before: Contract, now: Contract) -> Iterator[str]:
    """What a reader or writer of ``before`` would trip over, a sentence each; nothing when all was only added to."""
    for name, old in before.items():
        new = now.get(name)
        if new is None:
            yield f"{name} is removed: whoever reads or writes it today is left alone"
        elif ("enum" in old) != ("enum" in new):
            yield f"{name} is another sort of type than it was"
        elif "enum" in old:
            yield from _enum_breaks(name, old["enum"], new["enum"])
        else:
            yield from _message_breaks(name, old, new)


def _enum_breaks(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for member, value in old.items():
        if member not in new:
            yield f"{name}.{member} is removed"
        elif new[member] != value:
            yield f"{name}.{member} is {new[member]!r} on the wire where it was {value!r}"
    for member in new.keys() - old.keys():
        yield f"{name}.{member} is new, and a reader of this version refuses what it does not know"


def _message_breaks(name: str, old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    was, fields = old["message"], new["message"]
    if old["array"] != new["array"]:
        yield f"{name} is written {'as an array' if new['array'] else 'by the names of its fields'}, and was not"
    if new["array"] and [field for field in fields if field in was] != list(fields)[: len(was)]:
        yield f"{name} has a new field before its end, and an array is read by position"
    elif new["array"] and [field for field in was if field in fields] != [field for field in fields if field in was]:
        yield f"{name} has its fields in another order, and an array is read by position"
    for field, before in was.items():
        if field not in fields:
            yield f"{name}.{field} is removed"
            continue
        after = fields[field]
        if after["type"] != before["type"]:
            yield f"{name}.{field} is retyped: {_text(after['type'])}, and was {_text(before['type'])}"
        if "absent" in before and "absent" not in after:
            yield f"{name}.{field} is required now, and older writers leave it out"
        elif "absent" in before and after["absent"] != before["absent"]:
            yield f"{name}.{field} means {after['absent']!r} when it is absent, and meant {before['absent']!r}"
        elif "absent" not in before and "absent" in after:
            yield f"{name}.{field} is no longer required, and older readers refuse a message without it"
    for field in fields.keys() - was.keys():
        if "absent" not in fields[field]:
            yield f"{name}.{field} is new and required, and older writers do not have it: give it a default"


def _text(of: Any) -> str:
    if isinstance(of, str):
        return of
    ((how, what),) = of.items()
    if how == "of":
        return str(what)
    return f"{how} of {', '.join(map(_text, what)) if how == 'tuple' else what if how == 'literal' else _text(what)}"


def readers(contract: Contract) -> dict[str, type[msgspec.Struct]]:
    """A type for each message, made of the description alone: reads bytes as a release of that contract does."""
    made: dict[str, Any] = {}

    def kind_of(name: str) -> Any:
        if name not in made:
            entry = contract[name]
            if "enum" in entry:
                enum: Any = IntEnum if all(isinstance(value, int) for value in entry["enum"].values()) else Enum
                made[name] = enum(name, entry["enum"])
            else:
                fields = [_field(field, about) for field, about in entry["message"].items()]
                made[name] = msgspec.defstruct(name, fields, frozen=True, array_like=entry["array"])
        return made[name]

    def _field(name: str, about: dict[str, Any]) -> Any:
        hint = hint_of(about["type"])
        if "absent" not in about:
            return name, hint
        return name, hint, msgspec.convert(about["absent"], hint, dec_hook=net.from_wire)

    def hint_of(of: Any) -> Any:
        if isinstance(of, str):
            return PLAIN[of]
        ((how, what),) = of.items()
        match how:
            case "list":
                return tuple[hint_of(what), ...]  # type: ignore[misc]
            case "tuple":
                return tuple[tuple(hint_of(one) for one in what)]  # type: ignore[misc]
            case "literal":
                return Literal[tuple(what)]
            case "optional":
                return Optional[hint_of(what)]  # noqa: UP045 - made at run time
            case _:
                return kind_of(what)

    for name in contract:
        kind_of(name)
    return {name: kind for name, kind in made.items() if issubclass(kind, msgspec.Struct)}
