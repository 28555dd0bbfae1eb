"""Annotations that the mesh knows: what people ask for with them, and what becomes of that.

Names are the API's. What is *honoured* is read by the service that owns the matter; what is *refused* asks for other
addresses or another link than a pod can be given, so the pod does not start and its events say why; what is *told* does
no harm to leave out, and stands as an Event on the object. ``docs/fields.md`` has them all, with every field.
"""

from __future__ import annotations

from collections.abc import Mapping

KEEP_ADDRESS = "airmesh.io/keep-address"
"""On a Pod or its Namespace: ``"true"`` or ``"false"``."""
FIXED_ADDRESSES = "cni.projectcalico.org/ipAddrs"
"""On a Pod: a JSON list with at most one address of each family."""
BLOCKS = "airmesh.io/blocks"
"""On a Node, written by ``cluster``: the blocks it holds, joined by commas."""
MODEL = "airmesh.io/model"
"""On an IPPool: ``auto``, for which Calico has no word. An annotation, since its CRD and its tools neither refuse nor
lose one, and since each of its own fields (``ipipMode``, ``vxlanMode``) keeps its one meaning."""
ADMITTED = "airmesh.io/admitted-"
"""With ``dataplane`` or ``routing`` after it, on a Node, written by ``cluster``: the public key by which that agent was
let onto the bus, and the second in which it was signed."""
BGP_IPV4 = "projectcalico.org/IPv4Address"
"""On a Node, written by Calico or a person: its address for BGP, with or without a prefix length."""
BGP_IPV6 = "projectcalico.org/IPv6Address"
BGP_ASN = "projectcalico.org/ASNumber"
"""On a Node: its AS number."""
BGP_CLUSTER_ID = "projectcalico.org/RouteReflectorClusterID"
"""On a Node: it is a route reflector of this cluster (RFC 4456), written as an IPv4 address."""
STATIC_POD = "kubernetes.io/config.mirror"
"""On a Pod, written by a kubelet: the uid under which it runs the static pod that this object mirrors."""

OURS = ("airmesh.io/", "cni.projectcalico.org/")
"""Beginnings of the names that are read, whoever else reads them."""

HONOURED: Mapping[str, tuple[str, ...]] = {
    "Pod": (KEEP_ADDRESS, FIXED_ADDRESSES, STATIC_POD),
    "Namespace": (KEEP_ADDRESS,),
    "Node": (
        BLOCKS,
        f"{ADMITTED}dataplane",
        f"{ADMITTED}routing",
        BGP_IPV4,
        BGP_IPV6,
        BGP_ASN,
        BGP_CLUSTER_ID,
    ),
    "IPPool": (MODEL,),
    "Service": ("service.beta.kubernetes.io/load-balancer-source-ranges",),
}
"""By kind."""

_CHOICE = f"nobody can choose the pool of a pod yet; ask for an address by {FIXED_ADDRESSES}"
REFUSED: Mapping[str, Mapping[str, str]] = {
    "Pod": {
        "cni.projectcalico.org/ipv4pools": _CHOICE,
        "cni.projectcalico.org/ipv6pools": _CHOICE,
        "cni.projectcalico.org/ipAddrsNoIpam": f"every address is one of an IPPool; use {FIXED_ADDRESSES}",
        "cni.projectcalico.org/floatingIPs": "a pod has its own addresses alone; use a Service with externalIPs",
        "cni.projectcalico.org/hwAddr": "a pod cannot choose its MAC address; remove the annotation",
    },
    "Namespace": {"cni.projectcalico.org/ipv4pools": _CHOICE, "cni.projectcalico.org/ipv6pools": _CHOICE},
}
"""By kind: what cannot be had, and what to do instead."""

_SHAPING = "no traffic of pods is shaped; remove the annotation, and limit the program itself"
_INTERFACES = "a pod has one interface; install a meta plugin such as Multus, which makes others, or remove it"
REPORTED: Mapping[str, Mapping[str, str]] = {
    "Pod": {
        "kubernetes.io/ingress-bandwidth": _SHAPING,
        "kubernetes.io/egress-bandwidth": _SHAPING,
        "qos.projectcalico.org/": _SHAPING,
        "k8s.v1.cni.cncf.io/networks": _INTERFACES,
        "v1.multus-cni.io/default-network": _INTERFACES,
    },
}
"""By kind: what is left out, and what to do instead. A name that ends in ``/`` stands for all that begin so."""

WRITTEN_BY_OTHERS = (
    "cni.projectcalico.org/containerID",
    "cni.projectcalico.org/podIP",
    "cni.projectcalico.org/podIPs",
)
"""What Calico wrote on pods and namespaces before the cluster moved here: nobody's wish."""
