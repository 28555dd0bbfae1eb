"""What an installation decides without a cluster: versions, servers, options, revisions, obstacles, differences."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from cli.faults import Declined, Usage
from cli.install import render, requirements, revisions, rollout
from cli.install.cluster_check import of_pools
from cli.install.differences import difference
from cli.install.findings import Weight
from cli.install.options import SETTINGS, Options, remembered, to_remember
from cli.install.revisions import APPLYING, COMPLETE, Revision
from cli.install.secrets import Host
from services.cluster import settings as cluster
from services.dataplane import settings as dataplane
from services.dns import settings as dns
from services.ipam import settings as ipam
from services.policy import settings as policy
from services.routing import settings as routing


@pytest.mark.parametrize("old", ["v1.29.9", "v1.24.0+k3s1", "v0.1", "unknown"])
def test_an_older_kubernetes_is_named(old: str) -> None:
    with pytest.raises(Declined) as refused:
        requirements.check_version(old)
    assert f"runs Kubernetes {old}: airmesh needs 1.30 or newer" in str(refused.value)


@pytest.mark.parametrize("new", ["v1.30.0", "v1.36.3", "v2.0.0", "1.31+"])
def test_a_newer_one_is_taken(new: str) -> None:
    requirements.check_version(new)


def node(name: str, *labels: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": dict.fromkeys(labels, "")}, "status": {}}


def test_the_bus_has_three_servers_or_one_and_control_planes_come_first() -> None:
    control = "node-role.kubernetes.io/control-plane"
    nodes = [node("a"), node("b"), node("c", control), node("d", control)]
    assert [one.name for one in requirements.choose_servers((), nodes)] == ["c", "d", "a"]
    assert [one.name for one in requirements.choose_servers((), nodes[:2])] == ["a"]
    chosen = [Host(name=name, uid="", addresses=()) for name in ("z", "b")]
    assert [one.name for one in requirements.choose_servers(chosen, nodes)] == ["b", "z"]


def test_a_cluster_without_nodes_or_addresses_is_named() -> None:
    with pytest.raises(Declined, match="no node"):
        requirements.check_hosts((), ())
    bare = Host(name="n1", uid="", addresses=())
    with pytest.raises(Declined, match="node n1 has no InternalIP"):
        requirements.check_hosts((bare,), (bare,))


def test_what_is_not_given_is_as_it_was() -> None:
    before = Options(uplinks="eth0", tag="1")
    assert Options(tag="2").over(before) == Options(uplinks="eth0", tag="2")


@pytest.mark.parametrize("wrong", [{"tag": "a:b"}, {"tag": "a b"}, {"registry": "https://x"}, {"nats": "nats://"}])
def test_wrong_options_name_themselves(wrong: dict[str, str]) -> None:
    with pytest.raises(Usage, match=f"--{next(iter(wrong))}"):
        Options(uplinks="eth0", **wrong).check()


@pytest.mark.parametrize("wrong", ["", "eth0,", "eth 0", "a/b", "am-vxlan", "eth0,am-ipip"])
def test_an_uplink_is_an_interface_that_tunnels_go_over(wrong: str) -> None:
    with pytest.raises(Usage, match="--uplinks"):
        Options(uplinks=wrong).check()


@pytest.mark.parametrize(
    "wrong", ["192.0.2.1", "192.0.2.1:", "https://192.0.2.1:6443", "2001:db8::1:6443", "a@b:1", "a:99999", "a:1/x"]
)
def test_an_api_server_is_where_it_is_said(wrong: str) -> None:
    with pytest.raises(Usage, match="--api-server"):
        Options(uplinks="eth0", api_server=wrong).check()


@pytest.mark.parametrize(
    ("given", "host", "port"),
    [("192.0.2.1:6443", "192.0.2.1", "6443"), ("[2001:db8::1]:443", "2001:db8::1", "443"), ("api.x:1", "api.x", "1")],
)
def test_agents_get_the_api_server_as_kubernetes_gives_it_to_pods(given: str, host: str, port: str) -> None:
    options = Options(uplinks="eth0", api_server=given)
    options.check()
    assert options.variables == {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}
    said = render.settings(nats="", uplinks="eth0", servers=1, tls=False, more=options.variables)
    assert said["KUBERNETES_SERVICE_HOST"] == host


def test_settings_are_given_one_by_one_and_taken_back_so() -> None:
    before = Options(settings="AIRMESH_CGROUP=/x\nAIRMESH_TCX=true")
    assert Options().over(before) == before
    after = Options(settings="AIRMESH_TCX=\nAIRMESH_EXTERNAL_IPS=192.0.2.0/24,2001:db8::/32").over(before)
    after = replace(after, uplinks="eth0")
    after.check()
    assert after.variables == {"AIRMESH_CGROUP": "/x", "AIRMESH_EXTERNAL_IPS": "192.0.2.0/24,2001:db8::/32"}
    assert remembered(to_remember(after)) == after


@pytest.mark.parametrize("wrong", ["AIRMESH_CGRUOP=/x", "AIRMESH_UPLINKS=eth1", "cgroup=/x", "=x"])
def test_a_setting_that_nobody_knows_is_named_with_those_that_are(wrong: str) -> None:
    with pytest.raises(Usage, match=r"(?s)--set: .*AIRMESH_CGROUP"):
        Options(uplinks="eth0", settings=wrong).check()


def test_every_setting_that_can_be_given_is_one_of_a_service() -> None:
    classes = (cluster.Settings, dataplane.Settings, ipam.Settings, policy.Settings, routing.Settings, dns.Settings)
    known = {f"AIRMESH_{field.name.upper()}" for one in classes for field in fields(one)}
    assert known >= SETTINGS
    manifests = "".join(path.read_text() for path in render.FOLDER.rglob("*.yaml"))
    said = render.settings(nats="", uplinks="", servers=1, tls=True, more={})
    assert not [name for name in SETTINGS if name in said or f"name: {name}," in manifests]


def revision(number: int, state: str = COMPLETE, *names: str) -> Revision:
    objects = tuple(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "x"}} for name in names
    )
    return Revision(number=number, state=state, tag=str(number), objects=objects)


def test_a_revision_is_read_back_as_written() -> None:
    one = revision(7, APPLYING, "a", "b")
    assert revisions.history([one.write(), revision(2).write()]) == (revision(2), one)
    broken = one.write() | {"binaryData": {"objects": "AAAA"}}
    with pytest.raises(Declined, match="airmesh-revision-7 holds no revision"):
        revisions.history([broken])


@pytest.mark.parametrize(
    ("past", "names", "number", "state"),
    [
        pytest.param((), ("a",), 1, APPLYING, id="first"),
        pytest.param((revision(1, COMPLETE, "a"),), ("a", "b"), 2, APPLYING, id="another"),
        pytest.param((revision(1, COMPLETE, "a"),), ("a",), 1, COMPLETE, id="the-same"),
        pytest.param((revision(1, COMPLETE, "a"), revision(2, APPLYING, "b")), ("b",), 2, APPLYING, id="interrupted"),
        pytest.param((revision(1, COMPLETE, "a"), revision(2, APPLYING, "b")), ("a",), 2, APPLYING,
                     id="interrupted-then-back"),
        pytest.param((revision(1, COMPLETE, "a"), revision(2, COMPLETE, "b")), ("a",), 3, APPLYING, id="as-before"),
    ],
)  # fmt: skip
def test_what_is_installed_again_is_no_other_revision(
    past: tuple[Revision, ...], names: tuple[str, ...], number: int, state: str
) -> None:
    """So the way back from an upgrade that was run twice leads before it."""
    found = revisions.following(past, "9", revision(0, "", *names).objects)
    assert (found.number, found.state) == (number, state)
    assert found in past or found.tag == "9"


def test_the_way_back() -> None:
    past = (revision(1), revision(2), revision(3))
    assert revisions.before(past, "previous").number == 2
    assert revisions.before(past, "1").number == 1
    assert revisions.before((*past, revision(4, APPLYING)), "previous").number == 3
    with pytest.raises(Usage, match="no revision '9'"):
        revisions.before(past, "9")
    with pytest.raises(Usage, match="no revision 'previous'"):
        revisions.before(past[:1], "previous")


def test_what_is_in_no_revision_any_more_is_named() -> None:
    gone = revisions.gone(
        [revision(1, COMPLETE, "a", "b"), revision(2, COMPLETE, "b", "c")], revision(3, COMPLETE, "b").objects
    )
    assert [one.name for one in gone] == ["a", "c"]


def test_a_secret_shows_no_value() -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"seed": "U0VDUkVU"}}
    said = "\n".join(difference(None, secret))
    assert "+  seed: (secret " in said
    assert "U0VDUkVU" not in said
    assert list(difference(secret, {**secret, "metadata": {"name": "s", "resourceVersion": "9"}})) == []
    changed = list(difference(secret, {**secret, "data": {"seed": "T1RIRVI="}}))
    assert len([line for line in changed if line.startswith(("+ ", "- "))]) == 2


@pytest.mark.parametrize(
    ("status", "done"),
    [
        ({}, False),
        (
            {"observedGeneration": 1, "desiredNumberScheduled": 3, "updatedNumberScheduled": 3, "numberAvailable": 3},
            False,
        ),
        (
            {"observedGeneration": 2, "desiredNumberScheduled": 3, "updatedNumberScheduled": 2, "numberAvailable": 3},
            False,
        ),
        (
            {"observedGeneration": 2, "desiredNumberScheduled": 3, "updatedNumberScheduled": 3, "numberAvailable": 2},
            False,
        ),
        (
            {"observedGeneration": 2, "desiredNumberScheduled": 3, "updatedNumberScheduled": 3, "numberAvailable": 3},
            True,
        ),
    ],
)
def test_a_daemonset_runs_when_all_its_pods_are_new_and_available(status: dict[str, int], done: bool) -> None:
    found = {"kind": "DaemonSet", "metadata": {"generation": 2}, "spec": {}, "status": status}
    assert rollout.progress(found).done is done


def test_of_two_obstacles_the_one_that_does_not_pass_is_said() -> None:
    def pod(name: str, reason: str) -> dict[str, Any]:
        container = {"name": "agent", "image": "r/x:1", "state": {"waiting": {"reason": reason}}}
        return {"metadata": {"name": name}, "spec": {"nodeName": "n1"}, "status": {"containerStatuses": [container]}}

    assert rollout.obstacle([pod("a", "ContainerCreating")]) is None
    found = rollout.obstacle([pod("a", "CrashLoopBackOff"), pod("b", "ErrImagePull")])
    assert found is not None
    assert (found.final, found.sentence) == (True, "image r/x:1 cannot be had on node n1 (ErrImagePull)")


@pytest.mark.parametrize("reason", ["CrashLoopBackOff", "RunContainerError"])
def test_why_a_container_never_began_is_the_runtimes_to_say_since_there_is_no_log(reason: str) -> None:
    why = "exec: stat /usr/bin/python3.11: permission denied"
    waiting = {"reason": reason} | ({"message": why} if reason == "RunContainerError" else {})
    container = {"name": "agent", "image": "r/x:1", "state": {"waiting": waiting}}
    container["lastState"] = {"terminated": {"reason": "StartError", "message": why}}
    pod = {"metadata": {"name": "a"}, "spec": {"nodeName": "n1"}, "status": {"containerStatuses": [container]}}
    found = rollout.obstacle([pod])
    assert found is not None
    assert (found.final, found.sentence) == (False, f"pod a on node n1 ends again and again ({why})")


def test_of_a_job_that_failed_the_container_that_did_is_named() -> None:
    def ended(name: str, code: int) -> dict[str, Any]:
        return {"name": name, "state": {"terminated": {"exitCode": code}}}

    done = {"initContainerStatuses": [ended("routes", 0)], "containerStatuses": [ended("rest", 1)]}
    assert rollout.failed_container({"status": done}) == "rest"
    waits = {"initContainerStatuses": [ended("routes", 1)], "containerStatuses": [{"name": "rest", "state": {}}]}
    assert rollout.failed_container({"status": waits}) == "routes"
    assert rollout.failed_container({"status": {"containerStatuses": [ended("rest", 0)]}}) == ""
    assert rollout.failed_container({}) == ""


@pytest.mark.parametrize(
    ("status", "found"),
    [
        (None, []),
        ({"conditions": [{"type": "Allocatable", "status": "True", "reason": "OK"}]}, []),
        ({"conditions": [{"type": "Allocatable", "status": "False", "reason": "PoolDisabled"}]}, []),
        (
            {
                "conditions": [
                    {"type": "Other", "status": "False"},
                    {"type": "Allocatable", "status": "False", "reason": "Invalid", "message": "spec.cidr: x; write y"},
                ]
            },
            [("IPPool p gives no addresses: spec.cidr: x", "write y")],
        ),
    ],
)
def test_a_pool_that_is_refused_is_found(status: dict[str, Any] | None, found: list[tuple[str, str]]) -> None:
    pool = {"metadata": {"name": "p"}, "spec": {"cidr": "10.0.0.0/16"}, **({"status": status} if status else {})}
    findings = list(of_pools([pool]))
    assert [(one.found, one.remedy) for one in findings if one.weight is Weight.WRONG] == found
    assert findings[-1].found == "10.0.0.0/16"
