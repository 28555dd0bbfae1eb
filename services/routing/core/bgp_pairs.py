"""Pairs of nodes that learnt routes serve: who takes them, and the order in which a pair changes to them and from them.

Packets as they are, to a node that is on no link of this one, go where BGP leads. Where a tunnel led there before, its
routes go when learnt ones to all that is behind the pair are in the kernel. Where learnt routes lead and a pool asks
for a tunnel, its routes come when it is proved. So one of the two leads there at any time: learnt routes have a greater
metric than a pair's own, and stand beneath them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from kit.models import ENCRYPTS, HOST_GW
from proto.net import Network
from services.routing.core.choice import NOTHING, Choice
from services.routing.core.evidence import Evidence, Verdict, Way
from services.routing.core.faults import Fault
from services.routing.core.models.tunnel import PATIENCE

BGP = "bgp"
"""What stands for learnt routes where a model is named."""
_AS_THEY_ARE = (HOST_GW.name,)


def by_bgp(
    choice: Choice,
    peer: str,
    prefixes: list[Network],
    learnt: Callable[[Network], bool],
    evidence: Mapping[Way, Evidence],
    *,
    speaks: bool = True,
) -> Choice:
    """What a pair takes that takes ``choice`` without BGP. ``prefixes``: all that is behind it; ``learnt``: whether a
    learnt route in the kernel leads to one, or, where this node does not speak BGP itself, whether the fabric should.
    """
    missing = [prefix for prefix in prefixes if not learnt(prefix)]
    if choice.asked in (_AS_THEY_ARE, ()):
        near = any(path.model == HOST_GW.name for path in choice.candidates)
        if choice.path is None or (speaks and choice.pending and not near):
            return _to_bgp(choice, peer, missing)
    elif speaks and not missing and not choice.before and ENCRYPTS not in choice.asked:
        return _from_bgp(choice, evidence)
    return choice


def _to_bgp(choice: Choice, peer: str, missing: list[Network]) -> Choice:
    """The fabric leads there, if its routers say so; a tunnel stays until they do."""
    if not missing:
        return replace(
            choice, path=None, state="taken", why="the fabric leads there, by BGP", pending="", faults=(), learnt=True
        )
    others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    fault = Fault(
        f"no BGP peer of this node leads to {missing[0]}{others} of node {peer}, which is on no link of this one",
        "see with `airmesh bgp` which sessions are up, and that the peers pass the nodes' routes on",
        of_others=True,
        after=PATIENCE,
    )
    return replace(choice, why=fault.fault, pending=BGP if choice.pending else "", faults=(fault,))


def _from_bgp(choice: Choice, evidence: Mapping[Way, Evidence]) -> Choice:
    """Learnt routes stay until what is asked for is proved."""
    path = choice.path
    if path is not None and (path.way is None or evidence.get(path.way, NOTHING).verdict is Verdict.WORKS):
        return choice
    wanted = path.model if path is not None else choice.asked[0]
    why = choice.why if choice.faults else f"{wanted} is laid beside {BGP} and is being proved"
    return replace(choice, path=None, state="pending", why=why, pending=wanted, learnt=True)
