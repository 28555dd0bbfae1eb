"""The control plane of a lab: command lines of etcd, API server, controller manager and scheduler, and their
kubeconfigs.

Pure: paths and addresses in, text out. The components are the stock ones with stock flags. The API server listens
on the control plane's fabric address only. No node addresses are allocated and no pod range is told to anybody:
pods' addresses are airmesh's. etcd does not fsync: a lab's state dies with the lab.
"""

from collections.abc import Mapping

from lab.paths import Paths
from lab.topology import SERVICES4, SERVICES6, Host

API_PORT = 6443


def etcd(where: Paths) -> list[str]:
    """One member on loopback in the control plane's namespace."""
    client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
    return [
        "etcd",
        f"--data-dir={where.state / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def apiserver(where: Paths, control: Host) -> list[str]:
    """Dual stack, RBAC and Node authorisation, no anonymous access but to health. The control plane is no node, and no
    cluster IP is served there: webhooks and aggregated APIs are reached by their endpoints.
    """
    pki = where.pki
    return [
        "kube-apiserver",
        "--etcd-servers=http://127.0.0.1:2379",
        f"--secure-port={API_PORT}",
        f"--bind-address={control.fabric4}",
        f"--advertise-address={control.fabric4}",
        f"--client-ca-file={pki / 'ca.crt'}",
        f"--tls-cert-file={pki / 'apiserver.crt'}",
        f"--tls-private-key-file={pki / 'apiserver.key'}",
        f"--kubelet-certificate-authority={pki / 'ca.crt'}",
        f"--kubelet-client-certificate={pki / 'apiserver-kubelet-client.crt'}",
        f"--kubelet-client-key={pki / 'apiserver-kubelet-client.key'}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--service-cluster-ip-range={SERVICES4},{SERVICES6}",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={pki / 'sa.key'}",
        f"--service-account-signing-key-file={pki / 'sa.key'}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--enable-aggregator-routing",
        "--allow-privileged",
    ]


def controllers(where: Paths) -> list[str]:
    """Stock controllers, node addresses not among them."""
    pki = where.pki
    return [
        "kube-controller-manager",
        f"--kubeconfig={where.kubeconfig_of('controllers')}",
        f"--service-account-private-key-file={pki / 'sa.key'}",
        f"--root-ca-file={pki / 'ca.crt'}",
        f"--cluster-signing-cert-file={pki / 'ca.crt'}",
        f"--cluster-signing-key-file={pki / 'ca.key'}",
        "--use-service-account-credentials",
        "--allocate-node-cidrs=false",
        f"--flex-volume-plugin-dir={where.state / 'volume-plugins'}",
        "--leader-elect=false",
    ]


def scheduler(where: Paths) -> list[str]:
    """Stock scheduler, the only copy."""
    return ["kube-scheduler", f"--kubeconfig={where.kubeconfig_of('scheduler')}", "--leader-elect=false"]


def kubeconfig(server: str, user: str, files: Mapping[str, str]) -> str:
    """A kubeconfig with everything in it. `files`: base64 of `ca`, `certificate` and `key`."""
    return f"""\
apiVersion: v1
kind: Config
clusters:
- name: airmesh-lab
  cluster:
    server: {server}
    certificate-authority-data: {files["ca"]}
users:
- name: {user}
  user:
    client-certificate-data: {files["certificate"]}
    client-key-data: {files["key"]}
contexts:
- name: airmesh-lab
  context: {{cluster: airmesh-lab, user: {user}}}
current-context: airmesh-lab
"""
