"""The models of routing that this service does, and which of them a pair of nodes takes.

Each is a module of its own behind one contract (``contract``). Promises: a pair takes the first model asked for that
both nodes can do and that serves it; without one it has no path, and is told why. What was asked for is never replaced
by something else in silence. :mod:`services.routing.core.choice` says which of several is taken by what was measured.
"""

from __future__ import annotations

from collections.abc import Mapping

from services.routing.core.faults import Fault
from services.routing.core.models.contract import Model, Pair, Path
from services.routing.core.models.host_gw import HostGw
from services.routing.core.models.ipip import Ipip
from services.routing.core.models.tunnel import PATIENCE
from services.routing.core.models.vxlan import Vxlan
from services.routing.core.models.wireguard import Wireguard

MODELS: Mapping[str, Model] = {model.traits.name: model for model in (HostGw(), Ipip(), Vxlan(), Wireguard())}
"""By name: one for each of ``kit.models.SERVED`` at least."""


def path_by(name: str, pair: Pair, models: Mapping[str, Model] = MODELS) -> Path | Fault:
    """The path by a model that both nodes can do, or why there is none."""
    model = models.get(name)
    if model is None:
        return Fault(f"this node cannot do {name}", f"ask for one of {', '.join(sorted(models))} in the IPPool")
    if name not in pair.peer.models:
        able = ", ".join(sorted(pair.peer.models))[:64] or "none"
        path = model.path(pair)
        if isinstance(path, Fault):
            return path
        return Fault(
            f"node {pair.peer.node} cannot do {name}, only {able}",
            f"look at that node's faults, and run the same release on all nodes; or ask for another model than {name} "
            "in the IPPool",
            of_others=True,
            after=PATIENCE,
        )
    return model.path(pair)
