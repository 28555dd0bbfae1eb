"""Settings of ``dns``; every field is an environment variable ``AIRMESH_<FIELD>``, times in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Literal

from chassis.faults import SettingsFault
from chassis.runtime.settings import BaseSettings
from services.dns.core.corefile import Recipe, Unusable, check
from services.dns.core.sizing import Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(BaseSettings):
    """What CoreDNS is to answer, and how many of it there may be."""

    dns_cluster_domain: str = "cluster.local"
    """Domain of the cluster's names."""

    dns_upstreams: tuple[IPv4Address | IPv6Address, ...] = ()
    """Resolvers for names outside of the cluster, comma-separated; none: such names are not answered."""

    dns_ttl: int = 30
    """Seconds that clients may keep an answer about the cluster."""

    dns_cache: int = 30
    """Longest time in seconds that CoreDNS keeps an answer."""

    dns_autopath: bool = False
    """Walk search paths on the server; breaks on reused pod addresses until the cluster's own watch has caught up."""

    dns_replicas_least: int = 2
    """Fewest CoreDNS replicas."""

    dns_replicas_most: int = 10
    """Most CoreDNS replicas."""

    dns_report_seconds: float = 10.0
    """Time between two reports."""

    dns_service: str = "kube-dns"
    """Name of the cluster's DNS Service in kube-system, whose endpoints are the CoreDNS servers."""

    dns_port: int = 53
    """Port of the servers' answers."""

    dns_mode: Literal["observe", "advise", "act"] = "advise"
    """Whether tuning decisions are not made, proposed, or applied one at a time."""

    dns_metrics_port: int = 9153
    """Port of CoreDNS' metrics page."""

    lease_seconds: float = 6.0
    """After this long without a word another copy decides and reports."""

    def recipe(self) -> Recipe:
        """What the Corefile is made of; raises SettingsFault."""
        recipe = Recipe(
            cluster_domain=self.dns_cluster_domain,
            upstreams=self.dns_upstreams,
            ttl=self.dns_ttl,
            cache=self.dns_cache,
            autopath=self.dns_autopath,
        )
        try:
            check(recipe)
        except Unusable as unusable:
            value = str(getattr(recipe, unusable.field))
            raise SettingsFault(f"AIRMESH_DNS_{unusable.field.upper()}", value, unusable.remedy) from None
        return recipe

    def rule(self) -> Rule:
        """The figures that sizing goes by; raises SettingsFault."""
        try:
            return Rule(least=self.dns_replicas_least, most=self.dns_replicas_most)
        except ValueError as error:
            raise SettingsFault("AIRMESH_DNS_REPLICAS_LEAST", str(self.dns_replicas_least), str(error)) from None
