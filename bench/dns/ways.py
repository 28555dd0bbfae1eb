"""The settings that are measured beside each other: Corefiles of CoreDNS servers, and the resolv.conf of a pod. Pure.

The peers are the forms that installers write, word for word but for the addresses that servers of one network namespace
share: kubeadm's, and NodeLocal DNSCache's before it. Ours are what ``services.dns`` makes of its settings.

Source: kubernetes/cmd/kubeadm/app/phases/addons/dns (CoreDNSConfigMap); kubernetes/dns, nodelocaldns.yaml.
"""

from __future__ import annotations

from dataclasses import dataclass

SERVICE, NODE_LOCAL, BEHIND = "10.96.0.10", "169.254.20.10", "10.96.0.11"
"""The DNS Service, NodeLocal DNSCache's address, and the Service that it forwards names of the cluster to."""
NAMESPACE, DOMAIN, NODE_DOMAIN = "bench-dns", "cluster.local", "compute.internal"
"""A pod's namespace, the cluster's domain, and the domain that a node's own resolv.conf searches, as clouds set it."""
NDOTS, FEWER_NDOTS = 5, 2
"""Of the kubelet's resolv.conf (kubelet/network/dns), and as ``airmesh dns plan`` proposes it."""
KUBEADM, NODELOCAL, OURS, TUNED, WITH_NDOTS = (
    "kubeadm",
    "NodeLocal DNSCache",
    "airmesh, before",
    "airmesh, tuned",
    "airmesh, tuned, ndots 2",
)

TUNABLE = (TUNED, WITH_NDOTS)
"""Ways that begin as :data:`OURS` and are tuned by what is measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A pod's resolver, and the servers that run for it."""

    name: str
    server: str
    """Address in the pod's resolv.conf."""
    corefiles: tuple[str, ...]
    """One a server; the pod asks the last."""
    metrics_port: int = 9153
    """Of the server that the pod asks."""
    ndots: int = NDOTS

    @property
    def resolv_conf(self) -> str:
        """As the kubelet writes it for dnsPolicy ClusterFirst."""
        search = " ".join((f"{NAMESPACE}.svc.{DOMAIN}", f"svc.{DOMAIN}", DOMAIN, NODE_DOMAIN))
        return f"nameserver {self.server}\nsearch {search}\noptions ndots:{self.ndots}\n"


def kubeadm(form: str) -> Way:
    """``form``: the Corefile as kubeadm writes it."""
    return Way(name=KUBEADM, server=SERVICE, corefiles=(form,))


def node_local(form: str, behind: str) -> Way:
    """``form``: NodeLocal DNSCache's; ``behind``: of the servers that it forwards to, on :data:`BEHIND` alone."""
    shared = behind.replace("    errors\n", f"    errors\n    bind {BEHIND}\n", 1)
    shared = shared.replace("    health {", f"    health {BEHIND}:8080 {{", 1)
    return Way(name=NODELOCAL, server=NODE_LOCAL, corefiles=(shared, form), metrics_port=9253)


def ours(corefile: str, name: str = OURS, ndots: int = NDOTS) -> Way:
    """``corefile``: as ``services.dns`` writes it."""
    return Way(name=name, server=SERVICE, corefiles=(corefile,), ndots=ndots)
