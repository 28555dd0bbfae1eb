"""A pod's life on a real node: attached, reached, checked, undone; what the runtime may do wrong; what survives."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import msgspec
import pytest

from linux.netns import netns_cookie
from proto.addresses import Endpoint
from proto.objects import Owner, Pod
from proto.subjects import ENDPOINTS
from services.dataplane.core.attachment import Attachment
from services.dataplane.core.endpoint.links import GROUP_LIVE, Mark, alias, host_name
from tests.bpf.world import inside, namespace, run
from tests.netns.dataplane.mesh import Listener, Mesh, RunningPod, dial, wait_for

pytestmark = pytest.mark.privileged


def test_two_pods_reach_each_other_by_their_own_addresses(node: Mesh) -> None:
    prober, target = node.pod("front"), node.pod("back")
    listener = Listener(target.netns)
    assert dial(prober.netns, target.four, 80, listener) == prober.four
    assert dial(prober.netns, target.six, 80, listener) == prober.six
    listener.close()


def test_the_node_reaches_its_pods_and_they_reach_it(node: Mesh) -> None:
    pod = node.pod("probed")
    listener = Listener(pod.netns)
    assert dial(node.netns, pod.four, 80, listener)
    assert dial(node.netns, pod.six, 80, listener)
    listener.close()
    on_node = Listener(node.netns, 8080)
    assert dial(pod.netns, "172.30.0.11", 8080, on_node) == pod.four
    on_node.close()


def test_what_leaves_the_cluster_has_the_node_s_address(node: Mesh) -> None:
    pod = node.pod("outward")
    outside = Listener(f"{node.netns}-f", 8080)
    assert dial(pod.netns, "172.30.0.1", 8080, outside) == "172.30.0.11"
    assert dial(pod.netns, "fd00:172:30::1", 8080, outside) == "fd00:172:30::11"
    outside.close()


def test_an_add_repeated_answers_the_same_and_check_agrees(node: Mesh) -> None:
    pod = node.pod("twice")
    again = node.cni("ADD", pod.container, pod.netns, pod.pod)
    assert again.code == 0
    assert tuple(entry["address"].split("/")[0] for entry in again.body["ips"]) == pod.addresses
    assert node.cni("CHECK", pod.container, pod.netns, prevResult=again.body).code == 0
    run("ip", "-n", pod.netns, "addr", "del", f"{pod.four}/32", "dev", "eth0")
    broken = node.cni("CHECK", pod.container, pod.netns, prevResult=again.body)
    assert (broken.code, broken.body["code"]) == (1, 102)
    assert pod.four in broken.body["msg"]


def test_del_succeeds_however_often_and_leaves_nothing(node: Mesh) -> None:
    pod = node.pod("leaving")
    for netns in (pod.netns, "", "gone"):
        assert node.cni("DEL", pod.container, netns).code == 0
    assert node.cni("DEL", "never-seen").code == 0
    assert run("ip", "-n", node.netns, "route", "show", pod.four) == ""
    wait_for("the link to go", lambda: "eth0" not in run("ip", "-n", pod.netns, "-br", "link"))
    wait_for("the entry to go", lambda: not _published(node, "leaving"))
    other = node.pod("coming")
    assert not set(other.addresses) & set(pod.addresses), "a freed address rests"


def _published(node: Mesh, name: str) -> list[Endpoint]:
    return [entry for entry in node.read(ENDPOINTS, Endpoint).values() if entry.pod == name]


def test_the_others_are_reported(node: Mesh) -> None:
    pod = node.pod("told")
    wait_for("endpoints of the pod", lambda: {str(one.address) for one in _published(node, "told")} == {*pod.addresses})
    entries = _published(node, "told")
    assert all(entry.node == "n1" and entry.pod_uid == pod.pod.uid and entry.sequence > 0 for entry in entries)


def test_a_container_with_such_an_interface_is_refused_and_nothing_is_left(node: Mesh) -> None:
    pod = Pod(namespace="shop", name="taken", uid="uid-taken", node="n1")
    node.put(pod)
    netns = node.empty_namespace()
    run("ip", "-n", netns, "link", "add", "eth0", "type", "veth", "peer", "name", "other")
    links = run("ip", "-n", node.netns, "-br", "link").count("@")
    answer = node.cni("ADD", "taken", netns, pod)
    assert (answer.code, answer.body["code"]) == (1, 101)
    wait_for("links as before", lambda: run("ip", "-n", node.netns, "-br", "link").count("@") == links)
    run("ip", "-n", netns, "link", "del", "eth0")
    assert node.cni("ADD", "taken", netns, pod).code == 0


def test_a_namespace_that_is_none_is_code_4(node: Mesh, tmp_path: Path) -> None:
    pod = Pod(namespace="shop", name="nowhere", uid="uid-nowhere", node="n1")
    node.put(pod)
    for path in ("/run/netns/does-not-exist", "/etc/passwd", str(tmp_path)):
        environment = {
            "CNI_COMMAND": "ADD",
            "CNI_CONTAINERID": "nowhere",
            "CNI_IFNAME": "eth0",
            "CNI_NETNS": path,
            "CNI_ARGS": "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=nowhere;K8S_POD_UID=uid-nowhere",
        }
        stdin = msgspec.json.encode({"cniVersion": "1.0.0", "name": "airmesh", "socket": str(node.socket)})
        done = subprocess.run([node.executable], input=stdin, env=environment, capture_output=True, check=False)
        assert (done.returncode, msgspec.json.decode(done.stdout)["code"]) == (1, 4)


def test_a_pod_nobody_knows_has_to_come_again(node: Mesh) -> None:
    stranger = Pod(namespace="shop", name="stranger", uid="uid-s", node="n1")
    answer = node.cni("ADD", "stranger", node.empty_namespace(), stranger)
    assert answer.body["code"] == 11
    assert "shop/stranger" in answer.body["msg"]
    known = node.pod("known")
    other = msgspec.structs.replace(known.pod, uid="another")
    assert node.cni("ADD", "another", node.empty_namespace(), other).body["code"] == 11


def test_a_stateful_pod_keeps_its_addresses_when_it_is_made_again(node: Mesh) -> None:
    owner = Owner(namespace="shop", kind="StatefulSet", name="db", ordinal=0)
    first = node.pod("db-0", owner=owner)
    assert node.cni("DEL", first.container, first.netns).code == 0
    node.delete(first.pod)
    second = node.pod("db-0", owner=owner)
    assert second.addresses == first.addresses
    assert second.pod.uid != first.pod.uid
    plain = node.pod("plain")
    listener = Listener(second.netns)
    assert dial(plain.netns, second.four, 80, listener) == plain.four
    listener.close()


def test_gc_undoes_what_two_lists_a_grace_apart_both_lack(node: Mesh) -> None:
    kept, lost = node.pod("kept"), node.pod("lost")
    listed = [{"containerID": name, "ifname": "eth0"} for name in _containers(node) if name != lost.container]
    conf: dict[str, Any] = {"cni.dev/valid-attachments": listed}
    assert node.cni("GC", "", **conf).code == 0
    assert run("ip", "-n", node.netns, "route", "show", lost.four)
    time.sleep(1.2)
    assert node.cni("GC", "", **conf).code == 0
    assert run("ip", "-n", node.netns, "route", "show", lost.four) == ""
    assert run("ip", "-n", node.netns, "route", "show", kept.four)


def test_gc_undoes_a_link_whose_addresses_were_never_written_down(node: Mesh) -> None:
    kept, name = node.pod("recorded"), _unrecorded(node, "c-unlisted", "up")
    listed = [{"containerID": container, "ifname": "eth0"} for container in _containers(node)]
    everybody: dict[str, Any] = {"cni.dev/valid-attachments": listed}
    others = [one for one in listed if one["containerID"] != "c-unlisted"]
    without: dict[str, Any] = {"cni.dev/valid-attachments": others}
    for conf in (without, everybody, without):
        assert node.cni("GC", "", **conf).code == 0
        time.sleep(1.2)
    assert name in run("ip", "-n", node.netns, "link"), "one list after it was listed is not enough"
    assert node.cni("GC", "", **without).code == 0
    wait_for("its end", lambda: name not in run("ip", "-n", node.netns, "link"), 3)
    assert run("ip", "-n", node.netns, "route", "show", kept.four)


def test_a_link_whose_maker_died_before_it_was_up_is_removed(node: Mesh) -> None:
    name = _unrecorded(node, "c-cut-off", "down")
    wait_for("its end", lambda: name not in run("ip", "-n", node.netns, "link"), 20)
    assert any(line["event"] == "unrecorded-link-removed" for line in node.log("dataplane"))


def _unrecorded(node: Mesh, container: str, state: str) -> str:
    """A link as an ADD leaves it whose agent is killed before the addresses are on disk; its name."""
    netns = node.empty_namespace()
    with inside(netns):
        cookie = netns_cookie()
    mark = Mark(Attachment(container, "eth0"), f"uid-{container}", cookie)
    name = host_name(mark.attachment)
    run("ip", "-n", node.netns, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", netns)
    run("ip", "-n", node.netns, "link", "set", name, "alias", alias(mark), "group", str(GROUP_LIVE), state)
    return name


def _containers(node: Mesh) -> list[str]:
    words = [line.split() for line in run("ip", "-n", node.netns, "link").splitlines()]
    return [line[2] for line in words if line[:2] == ["alias", "airmesh/1"]]


def test_what_is_taken_away_by_hand_comes_back(node: Mesh) -> None:
    prober, target = node.pod("drift-a"), node.pod("drift-b")
    listener = Listener(target.netns)
    link = run("ip", "-n", node.netns, "route", "show", target.four).split()[2]
    run("ip", "-n", node.netns, "route", "del", target.four)
    run("ip", "-n", node.netns, "neigh", "del", target.six, "dev", link)
    run("nft", "delete", "table", "inet", "airmesh")
    run("tc", "-n", node.netns, "filter", "del", "dev", link, "ingress")
    wait_for("the route", lambda: run("ip", "-n", node.netns, "route", "show", target.four), 8)
    wait_for("the neighbour", lambda: run("ip", "-n", node.netns, "neigh", "show", target.six), 8)
    wait_for("the table", lambda: "masquerade" in run("nft", "list", "ruleset"), 8)
    wait_for("the filter", lambda: "bpf" in run("tc", "-n", node.netns, "filter", "show", "dev", link, "ingress"), 8)
    run("ip", "-n", node.netns, "link", "set", link, "down")
    wait_for("the link", lambda: "LOWER_UP" in run("ip", "-n", node.netns, "link", "show", link), 8)
    assert dial(prober.netns, target.four, 80, listener) == prober.four
    listener.close()


def test_pods_follow_the_mtu_of_the_uplink_and_their_connections_go_on(node: Mesh) -> None:
    prober, target = node.pod("sized-a"), node.pod("sized-b")
    with inside(target.netns), socket.create_server(("", 80)) as server:
        with inside(prober.netns):
            near = socket.create_connection((target.four, 80), 3)
        there, _ = server.accept()
    with near, there:
        there.settimeout(20)
        for mtu in (1400, 9000, 1500):
            run("ip", "-n", node.netns, "link", "set", "fab0", "mtu", str(mtu))
            for pod in (prober, target):
                wait_for(f"an MTU of {mtu}", lambda pod=pod, mtu=mtu: _mtus(node, pod) == (mtu, mtu), 8)  # type: ignore[misc]
            near.sendall(bytes(65536))
            assert len(there.recv(65536, socket.MSG_WAITALL)) == 65536
            assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= mtu - 40
            assert target.six in run("ip", "-n", target.netns, "addr", "show", "eth0")
            assert "default" in run("ip", "-n", target.netns, "-6", "route")
            assert _mtus(node, node.pod(f"sized-{mtu}")) == (mtu, mtu)


def _mtus(node: Mesh, pod: RunningPod) -> tuple[int, int]:
    """Of the pod's end and of the host's."""
    host_end = run("ip", "-n", node.netns, "route", "show", pod.four).split()[2]
    return _mtu_of(pod.netns, "eth0"), _mtu_of(node.netns, host_end)


def _mtu_of(netns: str, link: str) -> int:
    words = run("ip", "-n", netns, "-o", "link", "show", link).split()
    return int(words[words.index("mtu") + 1])


def test_a_pod_whose_namespace_went_without_a_del_is_undone(node: Mesh) -> None:
    pod = Pod(namespace="shop", name="vanishing", uid="uid-v", node="n1", labels=(("app", "vanishing"),))
    node.put(pod)
    with namespace(f"{node.netns}-vanish") as netns:
        assert node.cni("ADD", "vanishing", netns, pod).code == 0
        wait_for("its entry", lambda: _published(node, "vanishing"))
    wait_for("its entry to go", lambda: not _published(node, "vanishing"), 20)


@pytest.mark.alone
def test_three_hundred_mutated_calls_of_the_executable(node: Mesh, tmp_path: Path) -> None:
    chance = random.Random(1)
    before = own_namespaces(node)
    for _ in range(300):
        environment = {
            "CNI_COMMAND": chance.choice(["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION", "", "X"]),
            "CNI_CONTAINERID": chance.choice(["fuzz", "../x", "a" * 300, "", "a/b", "\u2603", "f.f-f_f"]),
            "CNI_IFNAME": chance.choice(["eth0", "..", "", "e" * 16, "a b"]),
            "CNI_NETNS": chance.choice(["/run/netns/none", "", "x", "/../etc", "/etc/shadow"]),
            "CNI_ARGS": chance.choice(
                ["", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=none;K8S_POD_UID=u", ";;==;", "=" * 500]
            ),
        }
        stdin = bytearray(
            msgspec.json.encode(
                {"cniVersion": "1.1.0", "name": "airmesh", "socket": str(node.socket), "prevResult": {}}
            )
        )
        for _ in range(chance.randrange(4)):
            at = chance.randrange(len(stdin))
            stdin[at : at + chance.randrange(3)] = bytes([chance.randrange(256)])
        if environment["CNI_COMMAND"] == "ADD" and environment["CNI_CONTAINERID"] in ("fuzz", "f.f-f_f"):
            environment["CNI_NETNS"] = "x"  # a call that would wait for the pod
        done = subprocess.run(
            [node.executable], input=stdin, env=environment, capture_output=True, cwd=tmp_path, check=False
        )
        assert done.returncode in (0, 1), done
        assert not done.stderr
        answer = msgspec.json.decode(done.stdout or b"{}")
        assert done.returncode == 0 or answer["code"] in {1, 4, 5, 6, 7, 11, 50, 102}
    assert not list(tmp_path.iterdir())
    assert own_namespaces(node) == before
    assert not [line for line in node.log("dataplane") if line.get("bug")]


def own_namespaces(node: Mesh) -> set[Path]:
    """Those of this node and its pods; others come and go beside us."""
    return set(Path("/run/netns").glob(f"{node.netns}*"))


def test_packets_go_on_without_the_agent_and_a_restart_takes_over(node: Mesh) -> None:
    prober, target = node.pod("stay-a"), node.pod("stay-b")
    listener = Listener(target.netns)
    with inside(prober.netns):
        flow = socket.create_connection((target.four, 80), 2)
    node.kill("dataplane")
    try:
        assert dial(prober.netns, target.six, 80, listener) == prober.six
        listener.answer()
        assert flow.recv(100)
        late = Pod(namespace="shop", name="late", uid="uid-late", node="n1", labels=(("app", "late"),))
        node.put(late)
        netns = node.empty_namespace()
        codes = {verb: node.cni(verb, "late", netns, late).body["code"] for verb in ("ADD", "DEL", "STATUS")}
        assert codes == {"ADD": 11, "DEL": 11, "STATUS": 50}
    finally:
        node.start_dataplane()
    wait_for("the agent", lambda: node.cni("STATUS", "").code == 0)
    assert dial(prober.netns, target.four, 80, listener) == prober.four
    assert node.cni("ADD", prober.container, prober.netns, prober.pod).code == 0, "the same endpoint as before"
    assert node.cni("ADD", "late", netns, late).code == 0
    assert node.cni("DEL", target.container, target.netns).code == 0
    assert dial(prober.netns, target.four, 80, listener, 0.3) == ""
    listener.close()
    flow.close()


def test_a_graceful_stop_leaves_everything_working(node: Mesh) -> None:
    prober, target = node.pod("grace-a"), node.pod("grace-b")
    listener = Listener(target.netns)
    assert node.kill("dataplane", signal.SIGTERM) == 0
    assert not node.socket.exists()
    assert dial(prober.netns, target.four, 80, listener) == prober.four
    assert list(node.conf.glob("*.conflist"))
    node.start_dataplane()
    wait_for("the agent", lambda: node.cni("STATUS", "").code == 0)
    assert dial(prober.netns, target.six, 80, listener) == prober.six
    listener.close()


def test_a_lost_journal_is_written_again_from_the_kernel(node: Mesh) -> None:
    prober, target = node.pod("amnesia-a"), node.pod("amnesia-b")
    listener = Listener(target.netns)
    node.kill("dataplane")
    for path in (node.folder / "state").iterdir():
        path.unlink()
    node.start_dataplane()
    wait_for("the agent", lambda: node.cni("STATUS", "").code == 0)
    assert dial(prober.netns, target.four, 80, listener) == prober.four
    fresh = [node.pod(f"after-{number}") for number in range(4)]
    assert not {one for pod in fresh for one in pod.addresses} & {*prober.addresses, *target.addresses}
    again = node.cni("ADD", target.container, target.netns, target.pod)
    assert again.code == 0, again
    assert {entry.pod for entry in node.read(ENDPOINTS, Endpoint).values()} >= {"amnesia-a", "amnesia-b"}
    assert node.cni("DEL", target.container, target.netns).code == 0
    assert run("ip", "-n", node.netns, "route", "show", target.four) == ""
    listener.close()


def test_without_nats_a_pod_that_has_arrived_starts_and_another_waits(node: Mesh) -> None:
    node.pod("twin-1", labels={"app": "twin"})
    arrived = Pod(namespace="shop", name="twin-2", uid="uid-t2", node="n1", labels=(("app", "twin"),))
    sticky = Pod(
        namespace="shop",
        name="sts-0",
        uid="uid-sts",
        node="n1",
        labels=(("app", "twin"),),
        owner=Owner(namespace="shop", kind="StatefulSet", name="sts", ordinal=0),
    )
    node.put(arrived, sticky)
    time.sleep(1.5)
    node.nats.kill()
    try:
        assert node.cni("ADD", "twin-2", node.empty_namespace(), arrived).code == 0
        refused = node.cni("ADD", "sts-0", node.empty_namespace(), sticky)
        assert refused.body["code"] == 11
        assert "keeps its address" in refused.body["msg"]
    finally:
        node.nats.start()
    wait_for("the entry of the pod that started meanwhile", lambda: _published(node, "twin-2"), 20)


def test_pods_leave_while_others_cannot_come(node: Mesh) -> None:
    """As many ADDs as are served at a time wait for pods that the mirror does not have; DEL and CHECK do not."""
    leaving, staying = node.pod("leaves"), node.pod("stays")
    absent = [Pod(namespace="shop", name=f"absent-{i}", uid=f"uid-absent{i}", node="n1") for i in range(65)]
    netns = node.empty_namespace()
    with ThreadPoolExecutor(len(absent)) as pool:
        adding = [pool.submit(node.cni, "ADD", f"absent{i}", netns, pod) for i, pod in enumerate(absent)]
        refused = next(one.result() for one in as_completed(adding))
        assert (refused.code, refused.body["code"]) == (1, 11)
        assert "are being served already" in refused.body["msg"], "one more than there is room for"
        assert node.cni("DEL", leaving.container, leaving.netns).milliseconds < 1000
        assert run("ip", "-n", node.netns, "route", "show", leaving.four) == ""
        for i in range(len(absent)):  # and each ends what it is about
            gone = node.cni("DEL", f"absent{i}", netns)
            assert gone.code == 0
            assert gone.milliseconds < 1000
        assert {one.result(timeout=5).body["code"] for one in adding} == {11}
    listener = Listener(staying.netns)
    assert dial(node.netns, staying.four, 80, listener)
    listener.close()
