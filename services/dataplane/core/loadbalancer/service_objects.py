"""Services and their EndpointSlices by name, kept by what changes, so that a change costs the Services it is about.

Owns which slice belongs to which Service (its ``kubernetes.io/service-name``; one that is moved belongs to two names
for that moment). Pure: present state only, whatever the order in which the objects came.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Set

from proto.objects import EndpointSlice, Service

Name = tuple[str, str]
"""Namespace and name of a Service."""


class ServiceObjects:
    """What is known; :meth:`put` changes it."""

    def __init__(self) -> None:
        self._by_key: dict[str, Service | EndpointSlice] = {}
        self._services: dict[Name, Service] = {}
        self._slices: dict[Name, dict[str, EndpointSlice]] = defaultdict(dict)

    @property
    def services(self) -> Mapping[Name, Service]:
        """All Services."""
        return self._services

    def names(self) -> Set[Name]:
        """Of all Services, and of those that only slices name."""
        return self._services.keys() | self._slices.keys()

    def slices(self, name: Name) -> Collection[EndpointSlice]:
        """The slices of a Service."""
        return self._slices[name].values() if name in self._slices else ()

    def put(self, key: str, now: Service | EndpointSlice | None) -> tuple[Name, ...]:
        """What a key of the bucket holds now, None when nothing (or another kind). Returns the Services it is about."""
        before = self._by_key.get(key)
        if before is now or before == now:
            return ()
        if now is None:
            del self._by_key[key]
        else:
            self._by_key[key] = now
        names = [self._drop(key, before)] if before is not None else []
        if isinstance(now, Service):
            self._services[now.namespace, now.name] = now
            names.append((now.namespace, now.name))
        elif now is not None:
            self._slices[now.namespace, now.service][key] = now
            names.append((now.namespace, now.service))
        return tuple(names)

    def _drop(self, key: str, before: Service | EndpointSlice) -> Name:
        if isinstance(before, Service):
            name = before.namespace, before.name
            del self._services[name]
            return name
        name = before.namespace, before.service
        del self._slices[name][key]
        if not self._slices[name]:
            del self._slices[name]
        return name
