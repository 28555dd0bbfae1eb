"""Clients that keep a backend, counted from entries of the maps."""

from __future__ import annotations

from ipaddress import ip_address

from services.dataplane.core.datapath import nat_layout as nat
from services.dataplane.core.datapath import service_layout as lb
from services.dataplane.core.doctor.affinity import SECOND, Asked, clients

ONE, TWO = (ip_address("10.0.0.1"), 8080), (ip_address("10.0.0.2"), 8080)
WEB = Asked(service="shop/web", port=80, protocol=6, family=4, seconds=100, backends=(ONE, TWO))
NOW = 1000 * SECOND
CLIENT = ip_address("192.0.2.1")


def had(target: tuple[object, int], age: int = 0) -> lb.Affinity:
    return lb.Affinity(last=NOW - age * SECOND, address=target[0], port=target[1])  # type: ignore[arg-type]


def flow(port: int, *, back: bool = False, service: int = 7, idle: int = 0) -> tuple[nat.NatKey, nat.Nat]:
    key = nat.NatKey(
        source=CLIENT, destination=ONE[0], source_port=port, destination_port=80, protocol=6, hook=nat.Hook.WIRE
    )
    becomes = nat.Nat(
        last_seen=NOW - idle * SECOND, source=ONE[0], destination=ONE[0], source_port=61000, destination_port=8080,
        service=service, endpoint=0, partner=0, is_back=back, seen=0, period=60,
    )  # fmt: skip
    return key, becomes


def test_clients_by_backend_that_keep_one_and_serve_still() -> None:
    gone = (ip_address("10.0.0.9"), 8080)
    sockets = [
        (lb.AffinityKey(client=1, service=7, kind=lb.AffinityKind.NAMESPACE), had(ONE)),
        (lb.AffinityKey(client=2, service=7, kind=lb.AffinityKind.NAMESPACE), had(ONE, 99)),
        (lb.AffinityKey(client=3, service=7, kind=lb.AffinityKind.NAMESPACE), had(ONE, 101)),
        (lb.AffinityKey(client=4, service=7, kind=lb.AffinityKind.NAMESPACE), had(TWO)),
        (lb.AffinityKey(client=5, service=7, kind=lb.AffinityKind.NAMESPACE), had(gone)),
        (lb.AffinityKey(client=6, service=8, kind=lb.AffinityKind.NAMESPACE), had(ONE)),
        (lb.AffinityKey(client=7, service=7, kind=lb.AffinityKind.SOCKET), had(ONE)),
    ]
    outside = [
        (nat.ClientKey(address=CLIENT, service=7), had(TWO)),
        (nat.ClientKey(address=ip_address("192.0.2.2"), service=8), had(TWO)),
    ]
    flows = [flow(1), flow(2), flow(3, back=True), flow(4, service=8), flow(5, idle=61)]
    (one,) = clients({7: WEB}, sockets, outside, flows, NOW)
    assert (one.backends, one.pods) == (("10.0.0.1:8080", "10.0.0.2:8080"), (2, 1))
    assert one.outside == (("192.0.2.1", 1),)
    assert (one.flows, one.busiest, one.busiest_flows) == (2, "192.0.2.1", 2)


def test_without_clients_it_says_so() -> None:
    (one,) = clients({7: WEB}, (), (), (), NOW)
    assert (one.pods, one.outside, one.flows, one.busiest) == ((0, 0), (), 0, "")
