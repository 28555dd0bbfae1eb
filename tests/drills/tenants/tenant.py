"""What a tenant with edit rights in one namespace can do by the API alone, each attack bounded in rate, count and time.

    python -m tests.drills.tenants.tenant --lab NAME ATTACK --namespace NAMESPACE [--pod POD] [--seconds S]

    relabel    one pod through ever new sets of labels, as fast as the API takes it
    bombs      one pod through sets of labels of some 700 KB
    policies   from everybody by many selectors; all addresses but 600; 1,000 CIDRs; one beyond its bound; edited anew
    services   Services of 1,000 ports, with endpoints

Whatever was made lies in the namespace given, and goes with it.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from typing import Any

from tests.drills.tenants.api import Api, Refused, pods, policies, services
from tests.labkit import attach

MOST_SECONDS = 900.0
SELECTORS = 200
SERVICES, PORTS = 66, 1000
BOMB_LABELS = 2200
"""Labels of some 320 bytes each."""
Step = Callable[[int], None]


def relabel(api: Api, namespace: str, pod: str) -> Step:
    """Another set of labels each time: another identity."""

    def step(count: int) -> None:
        api.merge(pods(namespace, pod), {"metadata": {"labels": {"hop": f"h{count}", "skip": f"s{count % 7}"}}})

    return step


def bombs(api: Api, namespace: str, pod: str) -> Step:
    """Each time the labels that were there go, and as many others come."""

    def labels(count: int) -> Iterator[str]:
        return (f"{'d' * 63}.{'e' * 63}.{'f' * 60}.b{count}/{'g' * 50}-{i:05}" for i in range(BOMB_LABELS))

    def step(count: int) -> None:
        wanted: dict[str, str | None] = dict.fromkeys(labels(count - 1), None) if count else {}
        wanted |= dict.fromkeys(labels(count), "v" * 60)
        api.merge(pods(namespace, pod), {"metadata": {"labels": wanted}})

    return step


def scattered(count: int, start: int = 1) -> list[str]:
    """Single addresses far apart."""
    return [f"{IPv4Address(i * 7_155_193 % (1 << 32))}/32" for i in range(start, start + count)]


def policy(name: str, peers: list[dict[str, Any]]) -> dict[str, Any]:
    """Selects pods that nobody is, but for its label: what it costs is the mesh's, not the tenant's own traffic."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name},
        "spec": {
            "podSelector": {"matchLabels": {"drill": "target"}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": peers, "ports": [{"port": 80}, {"port": 8080}]}],
            "egress": [{"to": peers}],
        },
    }


def large_policies() -> list[dict[str, Any]]:
    """Every shape that made others pay."""
    everybody: list[dict[str, Any]] = [
        {"namespaceSelector": {}, "podSelector": {"matchExpressions": [{"key": f"k{i}", "operator": "DoesNotExist"}]}}
        for i in range(SELECTORS)
    ]
    return [
        policy("beyond", [{"ipBlock": {"cidr": "0.0.0.0/0", "except": scattered(3000)}}]),
        policy("all-namespaces", [{"namespaceSelector": {}}]),
        policy("many-selectors", everybody),
        policy("all-but-600", [{"ipBlock": {"cidr": "0.0.0.0/0", "except": scattered(600)}}]),
        policy("thousand-blocks", [{"ipBlock": {"cidr": cidr}} for cidr in scattered(1000)]),
    ]


def large_policies_again(api: Api, namespace: str, _pod: str) -> Step:
    """Made once, then edited in turn: each edit has other CIDRs."""
    made = large_policies()

    def step(count: int) -> None:
        if count < len(made):
            api.create(policies(namespace), made[count])
            return
        peers = [{"ipBlock": {"cidr": "0.0.0.0/0", "except": scattered(600, count)}}]
        api.merge(policies(namespace, "all-but-600"), {"spec": {"ingress": [{"from": peers}]}})

    return step


def large_services(api: Api, namespace: str, _pod: str) -> Step:
    """One more each time, up to their number."""

    def step(count: int) -> None:
        if count >= SERVICES:
            time.sleep(1)
            return
        ports = [{"name": f"p{port}", "port": port, "targetPort": 80} for port in range(1, PORTS + 1)]
        body = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": f"wide-{count}"},
            "spec": {"selector": {"drill": "target"}, "ports": ports, "ipFamilyPolicy": "PreferDualStack"},
        }
        api.create(services(namespace), body)

    return step


ATTACKS: dict[str, tuple[Callable[[Api, str, str], Step], float]] = {
    "relabel": (relabel, 200.0),
    "bombs": (bombs, 2.0),
    "policies": (large_policies_again, 4.0),
    "services": (large_services, 4.0),
}
"""Attack → how it is made, and the most steps a second."""


def run(
    api: Api,
    attack: str,
    namespace: str,
    pod: str,
    going: Callable[[], bool],
    slower: float = 1.0,
    taken: Callable[[int], None] = lambda _: None,
) -> list[str]:
    """Step after step while ``going``; returns what the API server refused (it may: the attack goes on). ``taken`` is
    called with the number of each step that it took.
    """
    make, rate = ATTACKS[attack]
    step, refused = make(api, namespace, pod), []
    began = time.monotonic()
    for count in itertools.count():
        if not going():
            break
        try:
            step(count)
            taken(count)
        except (Refused, OSError) as error:
            refused.append(str(error)[:300])
            time.sleep(0.2)
        late = began + (count + 1) * slower / rate - time.monotonic()
        time.sleep(max(0.0, min(late, 1.0)))
    return refused


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="tests.drills.tenants.tenant")
    parser.add_argument("attack", choices=sorted(ATTACKS))
    parser.add_argument("--lab", required=True)
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--pod", default="", help="the pod to relabel; it has to be there")
    parser.add_argument("--seconds", type=float, default=30.0)
    given = parser.parse_args()
    end = time.monotonic() + min(given.seconds, MOST_SECONDS)
    refused = run(Api(attach(given.lab)), given.attack, given.namespace, given.pod, lambda: time.monotonic() < end)
    print("\n".join(refused) or "the API server refused nothing")


if __name__ == "__main__":
    main()
