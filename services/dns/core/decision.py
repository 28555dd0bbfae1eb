"""The desired Corefile, given the present one, and what is reported of it."""

from __future__ import annotations

from dataclasses import dataclass

from services.dns.core.caddyfile import Broken
from services.dns.core.corefile import Recipe, render
from services.dns.core.merge import merge
from services.dns.core.sizing import Size

_SETTING = {
    "autopath": "AIRMESH_DNS_AUTOPATH",
    "cache": "AIRMESH_DNS_CACHE",
    "forward": "AIRMESH_DNS_UPSTREAMS",
    "kubernetes": "AIRMESH_DNS_CLUSTER_DOMAIN and AIRMESH_DNS_TTL",
}


@dataclass(frozen=True, slots=True)
class ByHand:
    """Why a Corefile, or a number of replicas, is not as the settings ask for."""

    reason: str
    """Of the ``ObjectFault``."""
    fault: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Chosen:
    """The text that there should be, and the one that it was made of (None: there was none)."""

    text: str
    of: str | None
    by_hand: ByHand | None = None


def choose(recipe: Recipe, present: str | None) -> Chosen:
    """A person's text with our settings; a text that is none stays as it is. Raises ``Unusable`` for the recipe."""
    if present is None:
        return Chosen(render(recipe), None)
    try:
        merged = merge(recipe, present)
    except Broken as broken:
        fault = f"the Corefile's line {broken.line} has {broken.problem}: CoreDNS does not load it, nobody changes it"
        return Chosen(present, present, ByHand("CorefileBroken", fault, broken.remedy))
    return Chosen(merged.text, present, _unmet(merged.unmet) if merged.unmet else None)


def overruled(by: str, replicas: int, wanted: Size) -> ByHand:
    """An autoscaler's number of replicas is too small; ``by``: its field manager."""
    fault = f"{by} keeps {replicas} CoreDNS replicas, as an autoscaler; nodes and load ask for {wanted.reason}"
    remedy = (
        "raise the autoscaler's maxReplicas, let it read airmesh_dns_replicas_wanted (examples/dns/autoscaler.yaml), "
        "or delete it: airmesh does not write over its number"
    )
    return ByHand("CoreDNSScaledShort", fault, remedy)


def _unmet(plugins: tuple[str, ...]) -> ByHand:
    names = ", ".join(plugins)
    settings = ", ".join(dict.fromkeys(_SETTING[name] for name in plugins if name in _SETTING))
    fault = f"the Corefile has its own {names}, or imports what may: what airmesh's settings ask for is not in force"
    remedy = f"write {names} into the server block itself, or take your own lines out"
    return ByHand("CorefileByHand", fault, f"{remedy} (settings: {settings})" if settings else remedy)
