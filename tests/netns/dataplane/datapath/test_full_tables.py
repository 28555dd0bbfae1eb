"""One tenant asks for more than the tables take: it alone goes without, whole, told, and only as long as it must."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from statistics import median

import pytest

from chassis.bus.client import Bus
from proto.addresses import Endpoint
from proto.codec import encode_segment, object_key
from proto.events import ObjectFault
from proto.identity import FIRST_COMPUTED
from proto.objects import EndpointPort, EndpointSlice, Node, Service, ServicePort, SliceEndpoint
from proto.subjects import ENDPOINTS, OBJECTS, object_fault_subject
from proto.sync import Complete, Epoch, complete_key
from services.dataplane.core.datapath.layout import PrefixKey
from services.dataplane.core.datapath.service_layout import BackendKey, Scope, ServiceKey
from services.dataplane.datapath.pins import opened_maps
from services.dataplane.datapath.tables import Tables
from tests.natsd import bus_of, endpoint_at
from tests.netns.dataplane.mesh import Mesh, mesh, resident, wait_for

pytestmark = pytest.mark.privileged

TCP = 6
SIZES = {"AIRMESH_SERVICE_ENTRIES": "65536", "AIRMESH_BACKEND_ENTRIES": "16384", "AIRMESH_IPCACHE_ENTRIES": "128"}
PORTS = 1000


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    if os.geteuid() != 0:
        pytest.skip("it needs root (network namespaces, bpf(2))")
    with mesh(tmp_path_factory.mktemp("mesh"), "ft", **SIZES) as world:
        world.put(*(web(name) for name in ("old", "gone")), slice_of("old", 3), slice_of("gone", 3))
        wait_for("the Services", lambda: served(tables(world), "shop") == {"old", "gone"})
        yield world


ADDRESSES = {"old": "10.96.1.1", "gone": "10.96.1.2", "new": "10.96.1.3", "late": "10.96.1.4"}


def web(name: str, created: int = 100) -> Service:
    """A Service of the tenant that did nothing, with a node port."""
    port = ServicePort("http", TCP, 80, 30000 + list(ADDRESSES).index(name))
    cluster_ips = (ip_address(ADDRESSES[name]), ip_address(f"fd00:96::1:{ADDRESSES[name].rpartition('.')[2]}"))
    return Service(
        namespace="shop",
        name=name,
        uid=f"uid-{name}",
        type="NodePort",
        cluster_ips=cluster_ips,
        ports=(port,),
        created=created,
    )


def slice_of(name: str, count: int, *, namespace: str = "shop", part: int = 0, ports: int = 1) -> EndpointSlice:
    base = int(ip_address("10.200.0.0")) + part * 1000
    names = ["http"] if ports == 1 else [f"p{number}" for number in range(ports)]
    return EndpointSlice(
        namespace=namespace,
        name=f"{name}-{part}",
        service=name,
        endpoints=tuple(SliceEndpoint((ip_address(base + number),)) for number in range(count)),
        ports=tuple(EndpointPort(name, TCP, 8000 + number) for number, name in enumerate(names)),
    )


def greedy(number: int, ports: int = PORTS, created: int = 1000) -> Service:
    """One of many that a tenant makes."""
    return Service(
        namespace="mallory",
        name=f"s{number:02}",
        uid=f"uid-mallory-{number}",
        cluster_ips=(ip_address(int(ip_address("10.97.0.0")) + number),),
        ports=tuple(ServicePort(f"p{port}", TCP, 1 + port) for port in range(ports)),
        created=created + number,
    )


ALL = [greedy(number) for number in range(66)]


def tables(world: Mesh) -> Tables:
    return Tables(opened_maps(world.pins))


def frontends(opened: Tables) -> set[ServiceKey]:
    found = set(opened.services.items())
    opened.close()
    return found


def served(opened: Tables, namespace: str) -> set[str]:
    """Names of the Services that have a front here."""
    if namespace == "shop":
        addresses = {ip_address(address): name for name, address in ADDRESSES.items()}
    else:
        addresses = {one.cluster_ips[0]: one.name for one in ALL}
    return {addresses[key.address] for key in frontends(opened) if key.address in addresses}


def counted(world: Mesh) -> dict[str, int]:
    """Fronts of each of the greedy tenant's Services."""
    by_address = Counter(key.address for key in frontends(tables(world)))
    return {one.name: by_address[one.cluster_ips[0]] for one in ALL if by_address[one.cluster_ips[0]]}


def reported_while(
    world: Mesh, work: Iterable[Service | EndpointSlice], enough: int, seconds: float = 10.0
) -> dict[str, ObjectFault]:
    """What was said of objects within ten seconds of ``work`` (objects that are put)."""
    heard: dict[str, ObjectFault] = {}

    async def go() -> None:
        async with bus_of(world.nats, "cli") as cli, bus_of(world.nats, "cluster") as cluster:
            await cli.subscribe(
                object_fault_subject("dataplane", "n1"),
                ObjectFault,
                lambda _, fault: heard.__setitem__(f"{fault.namespace}/{fault.name}", fault),
            )
            await asyncio.sleep(0.2)
            await put(cluster, work)
            try:
                async with asyncio.timeout(60):
                    while len(heard) < enough:
                        await asyncio.sleep(0.05)
            except TimeoutError:
                raise AssertionError(f"only {sorted(heard)} were told") from None

    asyncio.run(go())
    return heard


async def put(bus: Bus, objects: Iterable[Service | EndpointSlice]) -> None:
    for one in objects:
        await bus.bucket(OBJECTS).put(object_key(one), one)


class TestAddresses:
    def test_a_node_with_too_many_endpoints_keeps_no_other_out_and_deletions_go_on(self, node: Mesh) -> None:
        node.put(*(Node(name=name, uid=f"uid-{name}", ready=True) for name in ("n2", "n3")))
        node.hold("10.244.64.0/24", "n2")
        node.hold("10.244.65.0/26", "n3")
        resident(
            node,
            n2=tuple(range(FIRST_COMPUTED, FIRST_COMPUTED + 200)),
            n3=tuple(range(FIRST_COMPUTED, FIRST_COMPUTED + 12)),
        )
        node.as_node("n3", lambda bus: publish(bus, "n3", "10.244.65.0", range(5)))
        wait_for("the small node's", lambda: known(node, "10.244.65.") == 5)
        node.as_node("n2", lambda bus: publish(bus, "n2", "10.244.64.0", range(200)))
        wait_for("what fits", lambda: known(node, "10.244.64.") > 80)
        kept = known(node, "10.244.64.")
        assert kept < 120
        node.as_node("n3", lambda bus: publish(bus, "n3", "10.244.65.0", range(5, 12)))
        wait_for("the small node's newest", lambda: known(node, "10.244.65.") == 12)
        node.as_node("n3", lambda bus: withdraw(bus, "n3", "10.244.65.0", range(12)))
        wait_for("their end", lambda: known(node, "10.244.65.") == 0)
        wait_for("their places taken", lambda: known(node, "10.244.64.") >= kept + 5)
        assert any(line["event"] == "addresses-refused" and line["node"] == "n2" for line in node.log("dataplane"))


class TestServices:
    def test_the_newest_of_the_largest_tenant_go_without_and_are_reported(self, node: Mesh) -> None:
        reported = reported_while(node, ALL, 5)
        assert set(reported) == {f"mallory/s{number}" for number in range(61, 66)}
        fault = reported["mallory/s65"]  # the last one: all are asked for by then
        assert (fault.kind, fault.reason) == ("Service", "TableFull")
        assert "namespace mallory asks for 66000 of" in fault.fault
        assert "in namespace mallory" in fault.remedy
        wait_for("all that fit", lambda: len(counted(node)) == 61)
        assert set(counted(node).values()) == {PORTS}, "never half a Service"
        assert served(tables(node), "shop") == {"old", "gone"}

    def test_everybody_else_goes_on(self, node: Mesh) -> None:
        """A Service younger than all of them is served, with its node port; one that is deleted goes."""
        node.put(web("new", created=9000), slice_of("new", 2))
        node.delete(web("gone"), slice_of("gone", 3))
        wait_for("the others", lambda: served(tables(node), "shop") == {"old", "new"})
        node_port = ServiceKey(address=ip_address("172.30.0.11"), port=30002, protocol=TCP, scope=Scope.PACKET)
        assert node_port in frontends(tables(node))
        assert ServiceKey(address=ip_address("172.30.0.11"), port=30001, protocol=TCP) not in frontends(tables(node))

    def test_after_a_restart_it_is_the_same(self, node: Mesh) -> None:
        before = frontends(tables(node))
        node.kill("dataplane")
        node.start_dataplane(**SIZES)
        node.put(web("late"), slice_of("late", 1))
        wait_for("a pass of the new agent", lambda: "late" in served(tables(node), "shop"))
        after = {
            key for key in frontends(tables(node)) if key.port != 30003 and key.address not in web("late").cluster_ips
        }
        assert after == before

    def test_the_refused_are_served_when_room_comes_back(self, node: Mesh) -> None:
        node.delete(*ALL[:8])
        wait_for("the rest", lambda: set(counted(node)) == {one.name for one in ALL[8:]})
        assert set(counted(node).values()) == {PORTS}
        node.delete(*ALL[8:])
        wait_for("their end", lambda: not counted(node))

    def test_with_memory_a_table_grows_and_nobody_goes_without(self, node: Mesh) -> None:
        node.kill("dataplane")
        node.start_dataplane(AIRMESH_TABLE_MEMORY="0.5")
        node.put(*ALL)
        wait_for("all of them", lambda: len(counted(node)) == 66)
        opened = tables(node)
        assert opened.services.entries == 131_072
        opened.close()
        assert any(line["event"] == "tables-grown" for line in node.log("dataplane"))
        node.delete(*ALL)
        wait_for("their end", lambda: not counted(node))


class TestBackends:
    def test_endpoints_times_ports_are_refused_before_they_are_reckoned(self, node: Mesh) -> None:
        """One Service with 20,000 endpoints and 1,000 ports would be 20 million backends."""
        node.kill("dataplane")
        node.start_dataplane(**SIZES)
        large = greedy(0)
        parts = [slice_of(large.name, 1000, namespace="mallory", part=part, ports=PORTS) for part in range(20)]
        reported = reported_while(node, [large, *parts], 1)
        assert "20000000 of" in reported["mallory/s00"].fault
        assert "am_backends" in reported["mallory/s00"].fault
        # Whose endpoints change meanwhile has the new ones soon.
        node.put(slice_of("old", 7))
        wait_for("the new endpoints", lambda: backends(node, "old") == 7, 5)
        # Its fronts are there, with nobody behind them: who connects is refused at once, and does not wait.
        wait_for("its fronts", lambda: counted(node) == {large.name: PORTS})
        assert behind(node, large) == {0}
        client = node.pod("client")
        began = time.monotonic()
        command = ["nsenter", f"--net=/run/netns/{client.netns}", sys.executable, "-c", _CONNECT, str(node.cgroup)]
        command.append(str(large.cluster_ips[0]))
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        assert said.stdout.strip() in ("ConnectionRefusedError", "PermissionError"), said
        assert time.monotonic() - began < 5
        node.delete(*parts[1:])
        node.put(slice_of(large.name, 10, namespace="mallory", ports=PORTS))
        wait_for("it, now that it is smaller", lambda: behind(node, large) == {10})
        node.delete(large, parts[0])

    def test_endpoints_that_change_all_the_time_hold_up_nobody_else(self, node: Mesh) -> None:
        """200,000 backends of one Service come and go while a neighbour's endpoints change and a pod starts."""
        large, name = greedy(1), "s01"

        def changed(count: int) -> float:
            """Seconds until the neighbour has so many endpoints."""
            began = time.monotonic()
            node.put(slice_of("old", count))
            wait_for("the neighbour's endpoints", lambda: backends(node, "old") == count)
            return time.monotonic() - began

        alone = max(changed(20), changed(21))
        waits: list[float] = []
        node.put(large, slice_of(name, 200, namespace="mallory", ports=PORTS))
        wait_for("it", lambda: counted(node) == {name: PORTS})
        for attempt in range(8):
            node.put(slice_of(name, 200 - attempt % 2, namespace="mallory", ports=PORTS))
            waits.append(changed(3 + attempt))
        assert median(waits) < 4 + 10 * alone, "one of them may have waited for the machine"
        started = node.pod("quick")
        assert started.four
        node.delete(large)
        wait_for("its end", lambda: not counted(node))


_CONNECT = """
import os, socket, sys
with open(sys.argv[1] + "/cgroup.procs", "w") as procs: procs.write(str(os.getpid()))
try: socket.create_connection((sys.argv[2], 1), 10)
except OSError as error: print(type(error).__name__)
"""


def behind(world: Mesh, service: Service) -> set[int]:
    """How many backends the fronts of a Service have."""
    opened = tables(world)
    found = {one.backends for key, one in opened.services.items().items() if key.address in service.cluster_ips}
    opened.close()
    return found


def backends(world: Mesh, name: str) -> int:
    opened = tables(world)
    frontend = opened.services.get(ServiceKey(address=ip_address(ADDRESSES[name]), port=80, protocol=TCP))
    assert frontend is not None
    keys = [BackendKey(service=frontend.number, index=index) for index in range(frontend.backends)]
    found = sum(opened.backends.get(key) is not None for key in keys)
    opened.close()
    return found


async def publish(bus: Bus, whose: str, block: str, ends: range) -> None:
    kv = bus.bucket(ENDPOINTS)
    for end in ends:
        address = ip_address(int(ip_address(block)) + end)
        entry = Endpoint(
            node=whose, address=address, namespace="mallory", pod=f"p{end}", pod_uid=f"uid-{whose}-{end}",
            identity=FIRST_COMPUTED + end, mac=bytes(6), epoch=3, sequence=end + 1,
        )  # fmt: skip
        await kv.put(endpoint_at(whose, address), entry)
    epoch = await kv.get("_epoch", Epoch)
    assert epoch is not None
    await kv.put(complete_key(encode_segment(whose)), Complete(epoch.value.epoch))


async def withdraw(bus: Bus, whose: str, block: str, ends: range) -> None:
    for end in ends:
        await bus.bucket(ENDPOINTS).delete(endpoint_at(whose, ip_address(int(ip_address(block)) + end)))


def known(world: Mesh, prefix: str) -> int:
    opened = tables(world)
    keys: list[PrefixKey] = list(opened.ipcache.items())
    opened.close()
    return sum(str(key.address).startswith(prefix) for key in keys)
