"""The models of routing that this service does, and which of them a pair of nodes takes.

Each is a module of its own behind one contract (``contract``). Promises: a pair takes the first model asked for that
both nodes can do and that serves it; without one it has no path, and is told why. What was asked for is never replaced
by something else in silence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from services.routing.core.faults import Fault
from services.routing.core.models.contract import Model, Pair, Path
from services.routing.core.models.host_gw import HostGw

MODELS: Mapping[str, Model] = {model.traits.name: model for model in (HostGw(),)}
"""By name: one for each of ``kit.models.SERVED``."""


def path_to(pair: Pair, asked: Sequence[str], models: Mapping[str, Model] = MODELS) -> Path | Fault:
    """The path by the first of the models asked for (one at least) that serves the pair; else why the last does not."""
    for name in asked[:-1]:
        found = _path_by(name, pair, models)
        if isinstance(found, Path):
            return found
    return _path_by(asked[-1], pair, models)


def _path_by(name: str, pair: Pair, models: Mapping[str, Model]) -> Path | Fault:
    model = models.get(name)
    if model is None:
        return Fault(f"this node cannot do {name}", f"ask for one of {', '.join(sorted(models))} in the IPPool")
    if name not in pair.peer.models:
        able = ", ".join(sorted(pair.peer.models))[:64] or "none"
        return Fault(
            f"node {pair.peer.node} cannot do {name}, only {able}",
            "run the same release of routing on all nodes, or ask for another model in the IPPool",
            of_others=True,
        )
    return model.path(pair)
