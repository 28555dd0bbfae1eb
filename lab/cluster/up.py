"""Brings a lab up: everything of it, in the order of its dependencies and concurrently where there is none.

Promises progress lines with the time gone by, a deadline on every wait, and an error with the end of the log of
whatever failed. A lab that is up keeps its shape, and is asked for another model or MTU where one is wanted; the
remains of one that is half there (a crash, a reboot) are removed first, since nothing in a lab is worth repairing.

    products, images ─┐
    namespaces ─┬─ supervisor ─┬─ etcd, API server ─┬─ controllers, scheduler, kinds and pools ─┬─ nodes ready ─ names
    authority ──┘              ├─ ports, NATS ──────┘                                           │
                               └─ containerd of each node, images imported ─ kubelet ───────────┘

Behind switches the nodes' BGP peers are applied with the kinds, and the last to wait for are routes between all nodes.
In pods (`Install.PODS`) the mesh comes last, as for a user: nodes registered ─ `airmesh install` ─ nodes ready ─ names.
"""

import asyncio
import base64
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from lab.cluster import (
    control,
    down,
    fabric,
    ledger,
    leftovers,
    mesh,
    models,
    namespaces,
    node,
    pki,
    pods,
    port_forward,
    switches,
)
from lab.cluster.api import Api, has_condition
from lab.cluster.launch import Launcher, begin, command, connect, kubectl, tail
from lab.cluster.record import Install, Record, read_record, write_record
from lab.cluster.sessions import Sessions
from lab.cluster.supervisor import State
from lab.images import build, contents
from lab.paths import SOURCE, Paths, Settings, paths
from lab.topology import Fabric, Host, LabError, Topology

_COMMAND_SECONDS, _IMPORT_SECONDS, _JOIN_SECONDS = 60.0, 240.0, 90.0
_ROUNDS, _ROUND_SECONDS = 12, 0.5
PEERS = SOURCE / "examples" / "scenarios" / "ai-bgp-ecmp.yaml"
"""Objects by which nodes speak BGP with both switches of a fabric."""


class Progress:
    """Lines such as `[ 3.2 s] control plane ready`."""

    def __init__(self, out: Callable[[str], None]) -> None:
        self._born = time.monotonic()
        self._out = out

    def __call__(self, text: str) -> None:
        """One line."""
        self._out(f"[{time.monotonic() - self._born:5.1f} s] {text}")


class Rise:
    """One lab on its way up. The methods are its stages."""

    def __init__(self, where: Paths, topology: Topology, wanted: Record, products: dict[str, Path]) -> None:
        self.where = where
        self.topology = topology
        self.install, self.model = wanted.install, wanted.model
        self.fabric = wanted.fabric
        self.switch, self.sessions = wanted.switch, Sessions(bfd=wanted.bfd)
        self.products = products
        self.archives: list[Path] = []
        self.images: asyncio.Task[Path] | None = None
        """Of airmesh itself, where its agents are pods: being saved."""
        self.launcher: Launcher
        self.api: Api

    async def ground(self) -> None:
        """Folders, namespaces, authority, supervisor, switches, kubeconfigs."""
        where, topology = self.where, self.topology
        for folder in (where.state, where.run, where.logs, where.pki, where.nats):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.to_thread(namespaces.make, topology))
            group.create_task(pki.make(topology, where.pki))
            beginning = group.create_task(begin(where))
        self.launcher = beginning.result()
        await switches.start_all(self.launcher, topology, self.switch, self.sessions)
        server = f"https://{topology.control.fabric4}:{control.API_PORT}"
        for leaf in pki.certificates(topology):
            if leaf.client:
                self._kubeconfig(where.kubeconfig_of(leaf.file), server, leaf.file)

    def _kubeconfig(self, path: Path, server: str, leaf: str) -> None:
        folder = self.where.pki
        names = {"ca": "ca.crt", "certificate": f"{leaf}.crt", "key": f"{leaf}.key"}
        files = {part: base64.b64encode((folder / name).read_bytes()).decode() for part, name in names.items()}
        ledger.write(path, control.kubeconfig(server, leaf, files).encode())

    async def gateway(self) -> None:
        """What the control plane's machine needs for agents that carry packets: its own bpffs."""
        of = self.where.node(self.topology.control.name)
        for folder in (of.run, of.bpffs, of.agents):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        await asyncio.to_thread(namespaces.run, ["mount", "-t", "bpf", "bpf", str(of.bpffs)])

    async def agents_in_pods(self, tag: str, say: Callable[[str], None]) -> None:
        """`airmesh install`; instead of a gateway the network leads the API server's machine to pods."""
        if self.fabric is Fabric.FLAT:
            await self.launcher.start("pod-routes", mesh.python("lab.cluster.pod_routes", self.where.lab), always=True)
        await pods.install(self.where, self.topology, tag, say)
        await self.peers()
        if self.model:
            await models.ask(self.where, self.model)

    async def _component(self, name: str, argv: list[str], host: Host) -> None:
        command = node.inside(host, [str(self.products["k8s"]), *argv])
        await self.launcher.start(name, command)

    async def control_plane(self) -> None:
        """Etcd and the API server, the port forward, and then the controllers."""
        where, host = self.where, self.topology.control
        await self._component("etcd", control.etcd(where), host)
        await self._component("apiserver", control.apiserver(where, host), host)
        await self.launcher.start("port-forward", self._port_forward(), always=True)

        async def listening() -> bool:
            return port_forward.read_ports(where.ports).api != 0

        await self.launcher.until("loopback ports", listening, seconds=20, process="port-forward")
        port = port_forward.read_ports(where.ports).api
        self._kubeconfig(where.kubeconfig, f"https://127.0.0.1:{port}", "admin")
        self.api = Api(where, port)
        await self.launcher.until("API server ready", self.api.ready, seconds=60, process="apiserver")
        await self._component("controllers", control.controllers(where), host)
        await self._component("scheduler", control.scheduler(where), host)

    def _port_forward(self) -> list[str]:
        # In pods the bus is on the nodes, so they are three ways to it.
        servers = [str(host.fabric4) for host in self.topology.nodes] if self.pods else []
        return mesh.python("lab.cluster.port_forward", self.where.lab, *servers)

    @property
    def pods(self) -> bool:
        """Whether agents are pods: a node then looks as a machine of its own does."""
        return self.install is Install.PODS

    async def runtime(self, host: Host) -> None:
        """One node's containerd, with the images in it."""
        paths_of = self.where.node(host.name)
        own = [paths_of.kubelet, paths_of.device_plugins, paths_of.cni_bin, paths_of.cni_conf, paths_of.static_pods]
        if self.pods:
            own += [paths_of.on_host(folder) for folder in node.HOST_FOLDERS]
        for folder in (paths_of.run, paths_of.bpffs, paths_of.agents, *own):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (paths_of.state / "containerd.toml").write_text(node.containerd_config(paths_of, pods=self.pods))
        (paths_of.state / "kubelet.yaml").write_text(node.kubelet_config(paths_of, self.where, host))
        (paths_of.state / "resolv.conf").write_text(node.resolv_conf())
        for program in ("loopback", "airmesh-cni"):
            if program in self.products:
                programs = paths_of.on_host(node.CNI_BIN) if self.pods else paths_of.cni_bin
                shutil.copy2(self.products[program], programs / program)
        for mount in (["mount", "-t", "bpf", "bpf", str(paths_of.bpffs)], *node.mounts(paths_of, pods=self.pods)):
            await asyncio.to_thread(namespaces.run, mount)
        name, argv = f"containerd-{host.name}", node.containerd(paths_of)
        await self.launcher.start(name, node.inside(host, node.apart(paths_of, argv, pods=True) if self.pods else argv))

        async def listening() -> bool:
            return paths_of.containerd_socket.exists()

        await self.launcher.until(f"containerd of {host.name}", listening, seconds=30, process=name)
        for archive in self.archives:
            await self._import(host, archive)
        if self.images is not None:
            await self._import(host, await asyncio.shield(self.images))

    async def _import(self, host: Host, archive: Path) -> None:
        argv = node.import_image(self.where.node(host.name), str(archive))
        await command(self.where, argv, "image import", _IMPORT_SECONDS)

    async def kubelet(self, host: Host) -> None:
        """One node's kubelet; the images must be there, or pods wait out a failed pull."""
        of = self.where.node(host.name)
        argv = node.apart(of, [str(self.products["k8s"]), *node.kubelet(of, self.where, host)], pods=self.pods)
        await self.launcher.start(f"kubelet-{host.name}", node.inside(host, argv))

    async def apply(self, *arguments: str) -> None:
        """`kubectl apply` on the server's side, as the field manager `airmesh-lab`."""
        await self.kubectl("apply", "--server-side", "--force-conflicts", "--field-manager=airmesh-lab", *arguments)

    async def kubectl(self, *arguments: str) -> None:
        """Run kubectl against the lab to its end."""
        argv = [kubectl(), f"--kubeconfig={self.where.kubeconfig}", *arguments]
        await command(self.where, argv, "kubectl", _COMMAND_SECONDS)

    async def objects(self) -> None:
        """Kinds first, and when the API server knows them, the pools; names for pods last."""
        if not self.pods:  # there `airmesh install` brings kinds, rights and pools
            await self.apply("-k", str(SOURCE / "deploy/kubernetes/crds"))
            await self.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd", "--all")
            await self.apply("-f", str(SOURCE / "lab/cluster/manifests"))
            await self.peers()
        await self.apply("-f", str(SOURCE / "deploy/kubernetes/coredns.yaml"))

    async def peers(self) -> None:
        """Where there are switches, the objects that name them."""
        if self.topology.switches:
            await self.apply("-f", str(PEERS))

    async def joined(self) -> bool:
        """Where there are switches, wait until each node leads to all others' pods by all of them."""

        async def joined() -> bool:
            return await asyncio.to_thread(switches.joined, self.topology)

        if self.topology.switches:
            await self.launcher.until("routes between all nodes by all switches", joined, seconds=_JOIN_SECONDS)
        return bool(self.topology.switches)

    async def registered(self, kind: str) -> None:
        """Wait until all nodes have registered, and when `kind` is given, have that condition."""

        async def there() -> bool:
            nodes = await self.api.items("/api/v1/nodes")
            return sum(not kind or has_condition(item, kind) for item in nodes) == len(self.topology.nodes)

        what = f"{len(self.topology.nodes)} nodes {kind or 'registered'}"
        await self.launcher.until(what, there, seconds=90, process="kubelet-n1")

    async def names(self) -> None:
        """Wait until a CoreDNS pod answers."""
        pods = "/api/v1/namespaces/kube-system/pods?labelSelector=k8s-app%3Dkube-dns"

        # Not the Deployment's condition: with one replica, of which one may be missing, it is Available from the start.
        async def available() -> bool:
            return any(has_condition(item, "Ready") for item in await self.api.items(pods))

        await self.launcher.until("CoreDNS ready", available, seconds=90)


async def is_up(where: Paths) -> bool:
    """Whether `up` finished and the lab's supervisor lives (processes of it may still have died: `status` tells)."""
    record = read_record(where)
    if record is None or not record.finished:
        return False
    try:
        launcher = await connect(where)
    except LabError:
        return False
    launcher.close()
    return True


async def up(wanted: Record, given: Settings, out: Callable[[str], None], *, tag: str = "") -> Paths:
    """Bring a lab up; ``tag`` of the images in pods, the manifests' unless given. Raises `LabError`; what was made
    until then stays for a look, `down` removes it.
    """
    say, lab = Progress(out), wanted.lab
    models.check_served(wanted.model)
    if wanted.fabric is Fabric.TOR:
        switches.check_program(wanted.switch)
    where, topology = paths(lab, given), wanted.topology
    if await is_up(where):
        await _same(where, wanted)
        await check_whole(where)
        say(f"lab {lab} is up already")
        return where
    if down.leftovers(where):
        say(f"lab {lab} is half there: removing it first")
        await asyncio.to_thread(down.down, where, lambda _: None)
    if wanted.install is Install.PODS:
        await asyncio.to_thread(pods.find_images, tag)
    processes = wanted.install is Install.PROCESSES
    targets = build.TARGETS if processes else tuple(t for t in build.TARGETS if t is not build.CNI)
    products = await build.build_all(targets, given.cache, say)
    archives = await asyncio.to_thread(contents.build, products, given.cache)
    where.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_record(where, wanted)
    where.machine_routes.write_text("\n".join(leftovers.machine_routes()))
    rise = Rise(where, topology, wanted, products)
    rise.archives = list(archives.values())
    await _rise(rise, given, say, tag)
    await check_whole(where)
    write_record(where, msgspec.structs.replace(wanted, finished=True))
    say(f"lab {lab} is up: {wanted.nodes} nodes, fabric {wanted.fabric}")
    return where


async def check_whole(where: Paths) -> None:
    """Raise `LabError` with the logs' ends when something of the lab stays down (agents are started again by then)."""
    launcher, ended = await connect(where), list[State]()
    try:
        for _ in range(_ROUNDS):
            ended = [state for state in (await launcher.states()).values() if not state.running]
            if not ended:
                return
            await asyncio.sleep(_ROUND_SECONDS)
    finally:
        launcher.close()
    tails = "\n".join(f"{state.name} ended with {state.code}:\n{tail(where.log(state.name), 4)}" for state in ended)
    raise LabError(f"lab {where.lab} is there, but not whole:\n{tails}")


async def _same(where: Paths, wanted: Record) -> None:
    """A lab that is up is what is wanted of it. Raises `LabError`."""
    record = read_record(where)
    if record is not None and record.shape != wanted.shape:
        raise LabError(f"lab {record.lab} is up with {record.shape}: run `down` first for another shape")
    if record is not None and wanted.fabric_mtu:
        await asyncio.to_thread(fabric.set_mtu, where, wanted.fabric_mtu)
    if record is not None and wanted.model:
        await models.ask(where, wanted.model)


async def _rise(rise: Rise, given: Settings, say: Progress, tag: str) -> None:
    processes = rise.install is Install.PROCESSES
    await rise.ground()
    say("namespaces, authority and supervisor ready")
    try:
        async with asyncio.TaskGroup() as group:
            if rise.pods:
                rise.images = group.create_task(asyncio.to_thread(pods.save, rise.where, tag))
            runtimes = {host: group.create_task(rise.runtime(host)) for host in rise.topology.nodes}
            if processes:
                group.create_task(mesh.bus(rise.launcher, rise.topology))
            await rise.control_plane()
            say("control plane ready")
            group.create_task(_nodes(rise, runtimes, say))
            await rise.objects()
            say("CoreDNS applied" if rise.pods else "kinds, pools and CoreDNS applied")
            if processes:
                if rise.model:
                    await models.ask(rise.where, rise.model)
                await rise.gateway()
                await mesh.services(rise.launcher, rise.topology, given)
                say("mesh started")
        if rise.images is not None:
            rise.images.result().unlink()  # it is in the nodes' runtimes by now
        if rise.pods:
            await rise.agents_in_pods(tag, say)
        if rise.install is not Install.NOTHING:
            await rise.registered("Ready")
            say("nodes ready")
            if await rise.joined():
                say("nodes reach each other by BGP")
            await rise.names()
            say("CoreDNS ready")
        if rise.pods:
            await pods.check(rise.where, say)
    except* LabError as several:
        raise LabError("\n".join(str(one) for one in _flat(several))) from several
    finally:
        rise.launcher.close()


async def _nodes(rise: Rise, runtimes: dict[Host, "asyncio.Task[None]"], say: Progress) -> None:
    for host, runtime in runtimes.items():
        await runtime
        await rise.kubelet(host)
    await rise.registered("")
    say(f"{len(runtimes)} nodes registered")


def _flat(group: BaseExceptionGroup[LabError]) -> list[BaseException]:
    found: list[BaseException] = []
    for one in group.exceptions:
        found += _flat(one) if isinstance(one, BaseExceptionGroup) else [one]
    return found
