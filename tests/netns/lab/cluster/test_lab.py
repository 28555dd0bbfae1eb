"""The lab's own machinery on a real kernel: namespaces, port forward, supervisor, and taking all of it away."""

import asyncio
import os
import shlex
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest
import pytest_asyncio

from lab import topology
from lab.cluster import down, launch, leftovers, mesh, namespaces, node, pinned, pod_routes, port_forward
from lab.cluster.launch import Launcher
from lab.cluster.supervisor import Request
from lab.paths import MARKER, Paths, Settings, paths
from lab.topology import LabError, plan
from linux import bpf

pytestmark = pytest.mark.privileged
ECHO = (
    "import socket; s = socket.create_server(('{}', {})); c, _ = s.accept(); c.sendall(c.recv(99).upper()); c.close()"
)


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Paths]:
    """A lab of a name nobody else has, in folders of its own; removed at the end whatever happened."""
    run = Path("/tmp") / f"am{uuid.uuid4().hex[:6]}"
    monkeypatch.setenv("AIRMESH_LABS", str(tmp_path / "labs"))
    monkeypatch.setenv("AIRMESH_RUN", str(run))
    lab = paths("t" + uuid.uuid4().hex[:6], Settings(labs=tmp_path / "labs", run=run, cache=tmp_path / "cache"))
    for folder in (lab.state, lab.run, lab.logs):
        folder.mkdir(parents=True)
    yield lab
    down.down(lab, lambda _: None)
    run.rmdir()


@pytest_asyncio.fixture
async def launcher(where: Paths) -> AsyncIterator[Launcher]:
    """The lab's supervisor, started."""
    begun = await launch.begin(where)
    yield begun
    begun.close()


@pytest.mark.alone
def test_namespaces_have_their_wiring_and_leave_nothing(where: Paths) -> None:
    before = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout.count("\n")
    lab = plan(where.lab, 2)
    namespaces.make(lab)
    inside = namespaces.run(["ip", "-n", lab.nodes[1].namespace, "-o", "addr"])
    assert "172.30.0.12/24" in inside
    assert "fd00:172:30::12/64" in inside
    assert "tentative" not in inside
    assert "172.31.0.12/24" in inside
    # A real connection over the fabric from one node to the other, both families.
    for address in (str(lab.nodes[0].fabric4), str(lab.nodes[0].fabric6)):
        _talk_across(lab, address)
    namespaces.remove(namespaces.existing(where.lab))
    assert namespaces.existing(where.lab) == []
    after = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout.count("\n")
    assert before == after


def _talk_across(lab: topology.Topology, address: str) -> None:
    family = "AF_INET6" if ":" in address else "AF_INET"
    server_of = f"socket.create_server(('{address}', 7000), family=socket.{family})"
    listen = f"import socket; s = {server_of}; print(1, flush=True); s.accept()"
    there = ["nsenter", f"--net={lab.nodes[0].netns}", "/usr/bin/python3", "-c", listen]
    enter = ["nsenter", f"--net={lab.nodes[1].netns}", "/usr/bin/python3", "-c"]
    with subprocess.Popen(there, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()
        talk = f"import socket; socket.create_connection(('{address}', 7000), 2)"
        done = subprocess.run([*enter, talk], check=False, timeout=10)
        server.kill()
    assert done.returncode == 0


def test_making_what_exists_is_one_clear_error(where: Paths) -> None:
    namespaces.make(plan(where.lab, 1))
    with pytest.raises(LabError, match="File exists"):
        namespaces.make(plan(where.lab, 1))


def test_routes_to_pods_follow_the_nodes_and_leave_others_alone(where: Paths) -> None:
    lab = plan(where.lab, 2)
    namespaces.make(lab)
    n1, n2 = lab.nodes
    space, four, six = lab.control.namespace, ip_network("10.244.0.0/26"), ip_network("fd00:10:244::/122")

    def routes() -> list[str]:
        shown = [namespaces.run(["ip", "-n", space, version, "route"]) for version in ("-4", "-6")]
        return [line for line in "".join(shown).splitlines() if "10.24" in line or "fd00:10:24" in line]

    namespaces.run(["ip", "-n", space, "route", "add", "10.245.0.0/26", "via", str(n1.fabric4)])
    pod_routes.apply(space, {four: str(n1.fabric4), six: str(n1.fabric6)})
    pod_routes.apply(space, {four: str(n2.fabric4), six: str(n1.fabric6)})
    assert [line.split()[:3] for line in routes()] == [
        [str(four), "via", str(n2.fabric4)],
        ["10.245.0.0/26", "via", str(n1.fabric4)],
        [str(six), "via", str(n1.fabric6)],
    ]
    pod_routes.apply(space, {})
    assert [line.split()[0] for line in routes()] == ["10.245.0.0/26"]


async def test_a_port_leads_into_the_lab_and_stays_the_same(where: Paths, launcher: Launcher) -> None:
    lab = plan(where.lab, 1)
    namespaces.make(lab)
    await launcher.start("port-forward", mesh.python("lab.cluster.port_forward", where.lab), always=True)

    async def listening() -> bool:
        return port_forward.read_ports(where.ports).nats != 0

    await launcher.until("port-forward", listening, seconds=10, process="port-forward")
    ports = port_forward.read_ports(where.ports)
    ((address, port),) = port_forward.targets(lab.control, ())["nats"]
    echo = ["nsenter", f"--net={lab.control.netns}", "/usr/bin/python3", "-c", ECHO.format(address, port)]
    await launcher.start("echo", echo)
    assert await _ask(ports.nats) == b"HELLO"
    # Nobody listens any more: the client is let go at once rather than kept waiting.
    assert await _ask(ports.nats, patience=False) == b""
    os.kill((await launcher.states())["port-forward"].pid, signal.SIGKILL)
    await asyncio.sleep(0.1)
    await launcher.start("echo", echo)
    assert await _ask(ports.nats) == b"HELLO"
    assert port_forward.read_ports(where.ports) == ports


async def _ask(port: int, *, patience: bool = True) -> bytes:
    end = time.monotonic() + 10
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"hello")
            answer = await asyncio.wait_for(reader.read(99), 5)
            writer.close()
        except OSError:
            answer = b""
        if answer or not patience or time.monotonic() > end:
            return answer
        await asyncio.sleep(0.05)


def test_a_port_forward_listens_on_loopback_alone(where: Paths) -> None:
    async def bound() -> str:
        namespaces.make(plan(where.lab, 1))
        inside = port_forward.Inside(plan(where.lab, 1).control.netns)
        server = await port_forward._listen(port_forward.PortForward(inside, (("172.31.0.2", 1),)), 0)
        host = str(server.sockets[0].getsockname()[0])
        server.close()
        return host

    assert asyncio.run(bound()) == "127.0.0.1"


def test_a_taken_port_is_named(where: Paths) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(LabError, match=f"port {port} "):
            asyncio.run(port_forward._listen(port_forward.PortForward(None, (("x", 1),)), port))  # type: ignore[arg-type]


async def test_an_agent_that_dies_comes_back_and_one_that_is_stopped_does_not(launcher: Launcher) -> None:
    await launcher.start("agent", ["sleep", "1000"], always=True)
    first = (await launcher.states())["agent"].pid
    os.kill(first, signal.SIGKILL)

    async def again() -> bool:
        state = (await launcher.states())["agent"]
        return state.running and state.pid != first

    await launcher.until("agent again", again, seconds=5)
    assert (await launcher.states())["agent"].restarts == 1
    (state,) = await launcher.ask(Request(verb="stop", name="agent"))
    assert not state.running
    await asyncio.sleep(0.5)
    assert not (await launcher.states())["agent"].running


async def test_a_process_that_cannot_start_or_ends_is_reported_with_its_log(where: Paths, launcher: Launcher) -> None:
    async def never() -> bool:
        return False

    await launcher.start("loud", ["sh", "-c", "echo the reason; exit 3"])
    with pytest.raises(LabError, match=r"loud ended with 3:\n    the reason"):
        await launcher.until("loud", never, seconds=5, process="loud")
    await launcher.start("absent", ["/no/such/program"])
    with pytest.raises(LabError, match="No such file"):
        await launcher.until("absent", never, seconds=5, process="absent")
    with pytest.raises(LabError, match="no process 'nobody'"):
        await launcher.ask(Request(verb="stop", name="nobody"))


async def test_down_finds_everything_after_the_supervisor_was_killed(where: Paths, launcher: Launcher) -> None:
    lab = plan(where.lab, 1)
    namespaces.make(lab)
    node = where.node("n1")
    node.bpffs.mkdir(parents=True)
    namespaces.run(["mount", "-t", "bpf", "bpf", str(node.bpffs)])
    await launcher.start("plain", ["sleep", "1001"])
    await launcher.start("shell", ["sh", "-c", "sleep 1002 & sleep 1003"])
    # One that lost its environment is still in the node's namespace.
    await launcher.start("bare", ["nsenter", f"--net={lab.nodes[0].netns}", "env", "-i", "/bin/sleep", "1004"])
    pids = [state.pid for state in (await launcher.states()).values()]
    (supervisor,) = (pid for pid, name in leftovers.lab_processes(where).items() if name == "supervisor")
    os.kill(supervisor, signal.SIGKILL)
    where.ledger.write_text("[{torn")
    kinds = {left.kind for left in down.leftovers(where)}
    assert {"process", "mount", "namespace", "file"} <= kinds
    assert down.down(where, lambda _: None) == []
    assert not any(Path(f"/proc/{pid}/root").exists() for pid in pids)
    assert down.down(where, lambda _: None) == []
    assert not where.state.exists()


def test_down_leaves_another_lab_and_strangers_alone(where: Paths) -> None:
    other = plan(where.lab + "x", 1)
    namespaces.make(other)
    namespaces.make(plan(where.lab, 1))
    environment = {**os.environ, MARKER: where.lab + "x"}
    with subprocess.Popen(["sleep", "1005"], env=environment) as stranger:
        try:
            assert down.down(where, lambda _: None) == []
            assert stranger.poll() is None
            assert namespaces.existing(other.lab) == sorted(other.namespaces)
        finally:
            stranger.kill()
            namespaces.remove(other.namespaces)


KUBELET = 'echo "$0" > "$1/kubelet.sock"; mkdir "$2/pods"; mount -t tmpfs pods "$2/pods"; echo "$0" > "$2/pods/secret"'
"""What a kubelet does with mounts: it listens for device plugins, and mounts a volume below its root."""


def _kubelet(where: Paths, name: str) -> tuple[list[list[str]], list[str]]:
    """(mounts before it starts, argv) of a stand-in for the kubelet of node `name`, its folders made."""
    of = where.node(name)
    of.kubelet.mkdir(parents=True)
    of.device_plugins.mkdir()
    argv = ["sh", "-ec", f"{KUBELET}; exec sleep 1006", name, str(node.DEVICE_PLUGINS), str(of.kubelet)]
    return list(node.mounts(of)), node.apart(of, argv)


@pytest.mark.parametrize("root", ["private", "shared"])
def test_a_kubelets_volumes_are_seen_outside_and_its_device_plugins_are_not(where: Paths, root: str) -> None:
    """On a machine whose `/` is of either kind: in a mount namespace that stands for it."""
    script = ["pids=; trap 'kill $pids' EXIT", f"mount --make-r{root} /"]
    for name in ("n1", "n2"):
        mounts, argv = _kubelet(where, name)
        script += [shlex.join(mount) for mount in mounts]
        script.append(f'{shlex.join(argv)} & pids="$pids $!"')
    secrets = [where.node(name).kubelet / "pods/secret" for name in ("n1", "n2")]
    script += [f"for n in $(seq 40); do [ -s {one} ] && break; sleep 0.05; done; cat {one}" for one in secrets]
    script += [f"ls {node.DEVICE_PLUGINS}", "cat /proc/self/mounts"]
    machine = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", "\n".join(script)]
    seen = subprocess.run(machine, capture_output=True, text=True, timeout=20, check=False)
    assert seen.stdout.startswith("n1\nn2\n"), f"the runtime does not see the volumes: {seen.stdout[:99]}{seen.stderr}"
    assert "kubelet.sock" not in seen.stdout
    points = [line.split()[1] for line in seen.stdout.splitlines() if "/" in line]
    assert str(node.DEVICE_PLUGINS) not in points
    assert [points.count(str(secret.parent)) for secret in secrets] == [1, 1]
    assert [(where.node(name).device_plugins / "kubelet.sock").read_text() for name in ("n1", "n2")] == ["n1\n", "n2\n"]


RUNTIME = """
touch /var/lib/airmesh/journal /etc/cni/net.d/10-x.conflist
: > /run/netns/cni-1; mount --bind /proc/self/ns/net /run/netns/cni-1
findmnt --noheadings --output PROPAGATION / > "$0"
exec sleep 1008
"""
"""What a node's runtime and pods of ours do with the node's folders; last it says how its root is mounted."""


@pytest.mark.alone
@pytest.mark.parametrize("root", ["private", "shared"])
def test_a_node_whose_agents_are_pods_has_the_folders_of_a_machine_of_its_own(where: Paths, root: str) -> None:
    of, said = where.node("n1"), where.state / "said"
    for folder in (of.kubelet, of.device_plugins, of.bpffs, *map(of.on_host, node.HOST_FOLDERS)):
        folder.mkdir(parents=True)
    script = [f"mount --make-r{root} /", f"mount -t bpf bpf {of.bpffs}"]
    script += [shlex.join(mount) for mount in node.mounts(of, pods=True)]
    runtime = shlex.join(node.apart(of, ["sh", "-ec", RUNTIME, str(said)], pods=True))
    script.append(f"{runtime} & trap 'kill $!' EXIT")
    script.append(f"for n in $(seq 200); do [ -s {said} ] && break; sleep 0.05; done; cat /proc/self/mounts")
    machine = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", "\n".join(script)]
    seen = subprocess.run(machine, capture_output=True, text=True, timeout=30, check=False)
    points = [line.split()[1] for line in seen.stdout.splitlines()]
    assert "shared" in said.read_text(), f"a pod could not follow its mounts: {seen.stderr}"
    assert (of.on_host(Path("/var/lib/airmesh")) / "journal").exists()
    assert not Path("/var/lib/airmesh/journal").exists()
    assert not Path("/etc/cni/net.d/10-x.conflist").exists()
    assert str(of.on_host(Path("/run/netns/cni-1"))) in points, "the lab does not see whose network namespace it is"
    assert not {"/var/lib/airmesh", "/etc/cni/net.d", "/sys/fs/bpf"}.intersection(points)


@pytest.mark.alone
async def test_down_takes_kubelets_and_their_mounts_away_when_all_was_killed(where: Paths, launcher: Launcher) -> None:
    before = node.DEVICE_PLUGINS.exists()
    for name in ("n1", "n2"):
        mounts, argv = _kubelet(where, name)
        for mount in mounts:
            namespaces.run(mount)
        await launcher.start(f"kubelet-{name}", argv)
        await launcher.until("volume", _there(where.node(name).kubelet / "pods/secret"), seconds=5)
    assert str(node.DEVICE_PLUGINS) in leftovers.mount_points()
    for pid in leftovers.lab_processes(where):
        os.kill(pid, signal.SIGKILL)
    assert {str(where.node(name).kubelet) for name in ("n1", "n2")} < set(leftovers.lab_mounts(where))
    assert down.down(where, lambda _: None) == []
    assert str(where.state) not in Path("/proc/self/mounts").read_text()
    assert before or not node.DEVICE_PLUGINS.exists()


def _there(path: Path) -> Callable[[], Awaitable[bool]]:
    async def there() -> bool:
        return path.exists() and bool(path.read_text())

    return there


def test_a_folder_under_another_labs_kubelet_stays_and_a_mount_that_came_out_goes(where: Paths) -> None:
    mine, other = where.node("n1").device_plugins, where.node("n2").device_plugins
    for folder in (mine, other):
        folder.mkdir(parents=True)
    stranger = node.apart(where.node("n2"), ["sh", "-c", "echo; exec sleep 1007"])
    with subprocess.Popen(stranger, stdout=subprocess.PIPE) as elsewhere:
        try:
            assert elsewhere.stdout is not None
            elsewhere.stdout.readline()
            namespaces.run(["mount", "--bind", str(mine), str(node.DEVICE_PLUGINS)])
            assert leftovers.lab_mounts(where) == [str(node.DEVICE_PLUGINS)]
            assert down.down(where, lambda _: None) == []
            assert node.DEVICE_PLUGINS.is_dir()
        finally:
            elsewhere.kill()


def test_a_pinned_map_is_found_and_proved_gone_only_when_nothing_holds_it(
    where: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(down, "_FREED_SECONDS", 2.0)
    bpffs = where.node("n1").bpffs
    bpffs.mkdir(parents=True)
    namespaces.run(["mount", "-t", "bpf", "bpf", str(bpffs)])
    held = bpf.map_create(2, 4, 4, 1)  # an array
    bpf.pin(held, bpffs / "am_held")
    known = leftovers.remember(where)
    (one,) = known.objects
    assert (one.kind, one.pin) == ("map", str(bpffs / "am_held"))
    left = down.down(where, lambda _: None)
    assert [(thing.kind, thing.what) for thing in left] == [("map", f"{one.number} {one.pin}")]
    os.close(held)
    deadline = time.monotonic() + 5
    while pinned.exists(one) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not pinned.exists(one)


def test_what_cannot_be_removed_is_reported(where: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    namespaces.make(plan(where.lab, 1))
    with monkeypatch.context() as lame:
        lame.setattr(namespaces, "remove", lambda names: None)
        left = down.down(where, lambda _: None)
    assert {(one.kind, one.what) for one in left} == {("namespace", name) for name in plan(where.lab, 1).namespaces}
