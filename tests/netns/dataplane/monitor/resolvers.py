"""Real CoreDNS servers and the resolvers of glibc and musl in pods of a node, and how often the servers were asked."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.dns.core.samples import parse
from tests.coredns import program
from tests.netns.dataplane.mesh import Mesh, RunningPod, wait_for

COREFILE = """.:53 {
    template IN A example {
        answer "{{ .Name }} 60 IN A 198.51.100.7"
    }
    template IN AAAA example {
        answer "{{ .Name }} 60 IN AAAA 2001:db8::7"
    }
    prometheus :9153
}
"""
_IN_POD = 'echo $$ >"$1/cgroup.procs" && mount --bind "$2" /etc && shift 2 && exec "$@"'


@contextmanager
def coredns(pod: RunningPod, folder: Path) -> Iterator[None]:
    """A real server in a pod."""
    corefile = folder / f"{pod.pod.name}.Corefile"
    corefile.write_text(COREFILE)
    argv = ["nsenter", f"--net=/run/netns/{pod.netns}", str(program()), "-conf", str(corefile)]
    with (folder / f"{pod.pod.name}.log").open("wb") as log, subprocess.Popen(argv, stdout=log, stderr=log) as running:
        try:
            wait_for("CoreDNS", lambda: queries(pod) is not None)
            yield
        finally:
            running.kill()


def queries(pod: RunningPod) -> int | None:
    """That the pod's server was asked; None while it does not answer."""
    argv = ["nsenter", f"--net=/run/netns/{pod.netns}", "curl", "-sf", "-m", "10", "http://127.0.0.1:9153/metrics"]
    page = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False).stdout
    return parse(page).queries if page else None


def files(etc: Path, server: str, seconds: int) -> Path:
    """`/etc` of a pod whose resolver waits so long for an answer."""
    etc.mkdir()
    (etc / "resolv.conf").write_text(f"nameserver {server}\noptions ndots:1 timeout:{seconds} attempts:2\n")
    (etc / "hosts").write_text("127.0.0.1 localhost\n")
    (etc / "nsswitch.conf").write_text("hosts: files dns\n")
    return etc


def looking_up(node: Mesh, pod: RunningPod, etc: Path, program: Path, lookups: int) -> subprocess.Popen[bytes]:
    """The program, in the pod."""
    enter = ["nsenter", f"--net=/run/netns/{pod.netns}", "unshare", "-m", "sh", "-c", _IN_POD, "sh"]
    argv = [*enter, str(node.cgroup), str(etc), str(program), str(lookups), "0", "50", "100", str(os.getpid())]
    return subprocess.Popen(argv, stdout=subprocess.PIPE)


def failed(running: subprocess.Popen[bytes], lookups: int, seconds: float) -> int:
    """Lookups that found nothing."""
    said, _ = running.communicate(timeout=seconds)
    found = json.loads(said)
    assert len(found["us"]) + found["failed"] == lookups
    return int(found["failed"])
