"""Dialects of policy: each module reads one kind of object into ``core.model``.

A dialect is a module here and a line in :data:`DIALECTS`. It states the precedence of what it reads; the compiler is
the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from proto.objects import KubernetesObject, NetworkPolicy
from services.policy.core.dialects import networkpolicy
from services.policy.core.model import Policy

DIALECTS: Mapping[type, Callable[[Any], Policy]] = {NetworkPolicy: networkpolicy.parse}
"""What reads each kind of object that is a policy."""


def read(value: KubernetesObject) -> Policy | None:
    """The policy that the object is; None for one that is none."""
    parse = DIALECTS.get(type(value))
    return None if parse is None else parse(value)
