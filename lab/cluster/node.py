"""One Kubernetes node of a lab: configuration and command lines of containerd (Debian's 1.6) and the stock kubelet.

Pure: paths and addresses in, text out. What lab nodes share and real nodes do not is turned off here, each with its
reason beside it. A kubelet has a mount namespace of its own, for the one path that no setting moves (`apart`); where
airmesh's agents are pods, its runtime has one too, and both see the node's own folders where a real machine has its.
Network namespaces of pods are mounted under the node's own state folder
(`netns_mounts_under_state_dir`), not in /run/netns: so a crash leaves no namespace of which nobody knows whose it
was.
"""

from collections.abc import Iterator
from pathlib import Path

from lab.images.contents import PAUSE_IMAGE
from lab.paths import NodePaths, Paths
from lab.topology import CLUSTER_DNS, GATEWAY4, Host
from linux.netns import command

DEVICE_PLUGINS = Path("/var/lib/kubelet/device-plugins")
"""Where every kubelet listens for device plugins, whatever its root (pkg/kubelet/apis/deviceplugin, a constant)."""
CNI_CONF, CNI_BIN, BPFFS = Path("/etc/cni/net.d"), Path("/opt/cni/bin"), Path("/sys/fs/bpf")
HOST_FOLDERS = (
    Path("/etc/airmesh"),
    CNI_CONF,
    CNI_BIN,
    Path("/run/airmesh"),
    Path("/run/netns"),
    Path("/var/lib/airmesh"),
    Path("/var/lib/airmesh-nats"),
)
"""What of a node's root pods of ours mount from it: where agents are pods, each node has its own at these places."""


def containerd_config(node: NodePaths, *, pods: bool = False) -> str:
    """containerd.toml: everything under the node's folders. ``pods``: the places that every runtime has, of the node's
    own root (`apart`), since agents that are pods look there.
    """
    cni_bin, cni_conf = (CNI_BIN, CNI_CONF) if pods else (node.cni_bin, node.cni_conf)
    return f"""\
version = 2
root = "{node.state}/containerd/root"
state = "{node.state}/containerd/state"
oom_score = 0
disabled_plugins = [
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing",
]
[grpc]
  address = "{node.containerd_socket}"
[ttrpc]
  address = "{node.containerd_socket}.ttrpc"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true          # a container may not lower its score without CAP_SYS_RESOURCE
  disable_apparmor = true
  netns_mounts_under_state_dir = {str(not pods).lower()}
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni_bin}"
    conf_dir = "{cni_conf}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        Root = "{node.run}/runc"         # else /run/containerd/runc, which other users of containerd share
"""


def kubelet_config(node: NodePaths, where: Paths, host: Host) -> str:
    """KubeletConfiguration; callers are authenticated by certificate or token, and authorised by the API server."""
    return f"""\
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://{node.containerd_socket}
address: {host.fabric4}
tlsCertFile: {where.pki}/serving-{host.name}.crt
tlsPrivateKeyFile: {where.pki}/serving-{host.name}.key
authentication:
  anonymous: {{enabled: false}}
  webhook: {{enabled: true}}
  x509: {{clientCAFile: {where.pki}/ca.crt}}
authorization: {{mode: Webhook}}
clusterDNS: [{CLUSTER_DNS}]
clusterDomain: cluster.local
resolvConf: {node.state}/resolv.conf
podLogsDir: {node.state}/pod-logs
staticPodPath: {node.static_pods}
fileCheckFrequency: 2s
volumePluginDir: {node.state}/volume-plugins
makeIPTablesUtilChains: false
# The nodes share one kernel and its cgroup root: none of them may manage it.
cgroupDriver: cgroupfs
failCgroupV1: false
cgroupsPerQOS: false
enforceNodeAllocatable: []
# Without CAP_SYS_RESOURCE neither can be raised.
oomScoreAdj: 0
maxOpenFiles: 1024
# The machine's disk and memory are everybody's: no eviction, no collection of images that cannot be pulled again.
imageGCHighThresholdPercent: 100
evictionHard: {{memory.available: "0%", nodefs.available: "0%", imagefs.available: "0%"}}
# A lab lives for minutes: see changes soon, and start again soon what a drill has killed often.
crashLoopBackOff: {{maxContainerRestartPeriod: 5s}}
nodeStatusUpdateFrequency: 2s
syncFrequency: 5s
nodeLeaseDurationSeconds: 20
shutdownGracePeriod: 0s
"""


def resolv_conf() -> str:
    """The node's resolver: an outside host (which a test may start). Not the machine's own, which pods cannot reach."""
    return f"nameserver {GATEWAY4}\noptions timeout:1 attempts:1\n"


def containerd(node: NodePaths) -> list[str]:
    """Command line of containerd."""
    return ["containerd", "--config", str(node.state / "containerd.toml"), "--log-level", "info"]


def kubelet(node: NodePaths, where: Paths, host: Host) -> list[str]:
    """Command line of the kubelet, both families of the node's fabric address among it."""
    return [
        "kubelet",
        f"--config={node.state / 'kubelet.yaml'}",
        f"--kubeconfig={where.kubeconfig_of('kubelet-' + host.name)}",
        f"--hostname-override={host.name}",
        f"--node-ip={host.fabric4},{host.fabric6}",
        # A cloud's controller would write these; without them hints and traffic distribution have nothing to go by.
        f"--node-labels=topology.kubernetes.io/region=lab,topology.kubernetes.io/zone={host.zone}",
        f"--root-dir={node.kubelet}",
        f"--cert-dir={node.state / 'kubelet-pki'}",
    ]


def mounts(node: NodePaths, *, pods: bool = False) -> Iterator[list[str]]:
    """Commands for the machine's mount namespace, before runtime and kubelet start: below what they make shared mounts
    of, each sees what another mounts. That is the kubelet's root, and where agents are ``pods`` the node's own folders.

    So the runtime sees the volumes that the kubelet mounts, and the machine network namespaces that the runtime mounts.
    Private in between: where `/` is shared, a bind mount of it belongs to its peers, and each volume would be mounted
    twice.
    """
    for folder in (node.kubelet, *([node.host] if pods else [])):
        yield ["mount", "--bind", "--make-private", str(folder), str(folder)]
        yield ["mount", "--make-shared", str(folder)]


def apart(node: NodePaths, argv: list[str], *, pods: bool = False) -> list[str]:
    """`argv` in a mount namespace of its own, with the node's folder of device plugins at `DEVICE_PLUGINS`. Where
    agents are ``pods``, its `HOST_FOLDERS` and its bpffs are there too, where a machine of its own has them.

    All mounts keep their peers, so what is mounted here below the kubelet's root is seen outside. The one mount that
    holds a place becomes a slave before: where it is shared, the folder would else be seen by the whole machine. What a
    pod asks to follow (mountPropagation) has to be shared, as all is on a machine that systemd has started.
    Only exec follows exec, so the process keeps its pid.
    """
    binds = [(node.device_plugins, DEVICE_PLUGINS)]
    if pods:
        binds += [(node.bpffs, BPFFS), *((node.on_host(folder), folder) for folder in HOST_FOLDERS)]
    script = (
        'while [ "$1" != -- ]; do mkdir -p "$2"'
        ' && mount --make-slave "$(findmnt --noheadings --output TARGET --target "$2")"'
        ' && mount --bind "$1" "$2" || exit 1; shift 2; done; shift'
    )
    if pods:
        script += "; mount --make-shared / && mount --make-shared " + str(BPFFS) + " || exit 1"
    paths = [str(path) for bind in binds for path in bind]
    into = ["unshare", "--mount", "--propagation", "unchanged", "sh", "-c"]
    return [*into, script + '; exec "$@"', "sh", *paths, "--", *argv]


def import_image(node: NodePaths, archive: str) -> list[str]:
    """`ctr`'s command for one archive, into the namespace that the kubelet's runtime looks in."""
    return ["ctr", "--address", str(node.containerd_socket), "--namespace", "k8s.io", "images", "import", archive]


def inside(host: Host, argv: list[str]) -> list[str]:
    """`argv` in the host's network namespace and a UTS namespace of its name.

    Only exec follows exec, so the process keeps its pid. Without an own host name, pods on the host network would
    answer with the machine's.
    """
    named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', host.name]
    return command(host.netns, *named, *argv)
