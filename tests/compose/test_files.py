"""compose/: its files agree with the plan of the images, and every overlay with the file that it lies over."""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.images import plan
from lab.compose import keys
from lab.compose.project import CUT, SOURCE, Project, faketime, overlays, tool_image
from lab.topology import LabError

COMPOSE: dict[str, Any] = yaml.safe_load((SOURCE / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
DEPLOY = SOURCE.parent / "deploy" / "kubernetes"
COPIES = {"cluster": 2, "ipam": 2, "policy": 2, "dns": 2, "routing": 1, "dataplane": 1}
TOOLS = {"nats-1", "nats-2", "nats-3", "host", "collector", "jaeger", "prometheus"}
COLLECTOR: dict[str, Any] = yaml.safe_load((SOURCE / "collector.yaml").read_text())


def copies(service: str) -> dict[str, Any]:
    return {name: one for name, one in SERVICES.items() if re.fullmatch(rf"{service}(-\d)?", name)}


def test_every_service_is_there_as_often_as_it_should_be() -> None:
    assert {service: len(copies(service)) for service in plan.SERVICES} == COPIES
    assert set(SERVICES) - TOOLS == {name for service in plan.SERVICES for name in copies(service)}


@pytest.mark.parametrize(
    "image", [one for one in plan.images() if one.service != plan.BUS], ids=lambda image: image.service
)
def test_a_service_runs_with_what_the_plan_says(image: plan.Image) -> None:
    for name, one in copies(image.service).items():
        assert one["image"] == image.name("${AIRMESH_TAG:-" + plan.tag() + "}"), name
        assert one["user"] == f"{image.user}:{image.user}"
        assert tuple(one.get("cap_add", ())) == image.capabilities
        assert one["network_mode"] == "service:host"
        seed = next(volume for volume in one["volumes"] if volume.endswith(":/run/secrets/airmesh/seed:ro"))
        assert f"/seeds/{one['environment']['AIRMESH_NATS_USER']}.seed:" in seed
    ports = {int(one["environment"]["AIRMESH_HEALTH_PORT"]) for one in copies(image.service).values()}
    assert image.health_port in ports
    assert len(ports) == COPIES[image.service]


APART = {
    # A key and an authority are one file each here, as every service of compose.yaml is given them.
    "/etc/airmesh/seeds": {"/run/secrets/airmesh/seed"},
    "/etc/airmesh/bus": {"/run/secrets/airmesh/ca.crt"},
    # Not the machine's root cgroup, but one that `compose-up` makes.
    "/sys/fs/cgroup": {"/host/cgroup"},
    # Pods of the drill are told by the one path.
    "/var/run/netns": set(),
}
"""Where a pod's mounts are otherwise in compose.yaml."""


@pytest.mark.parametrize("agent", ["routing", "dataplane"])
def test_an_agent_has_the_folders_and_settings_of_its_pod(agent: str) -> None:
    pod, common = (pod_of(agent), pod_of("any", "patches/daemonsets.yaml"))
    one, (container, of_all) = SERVICES[agent], (agents_container(each) for each in (pod, common))
    volumes = {each["name"]: each for each in (*pod["volumes"], *common["volumes"])}
    temporary = dict(each.split(":") for each in one["tmpfs"])
    paths = {re.findall(r":(/[^:]*)", volume)[0] for volume in one["volumes"]} | temporary.keys()
    wanted: set[str] = set()
    for mount in (*container["volumeMounts"], *of_all["volumeMounts"]):
        path, volume = mount["mountPath"], volumes[mount["name"]]
        wanted |= APART.get(path, {path})
        assert ("emptyDir" in volume) == (path in temporary), path
        if path in temporary:
            assert f"{volume['emptyDir']['sizeLimit'].removesuffix('i').lower()}," in f"{temporary[path]},", path
            assert volume["emptyDir"]["medium"] == "Memory"
    assert paths == wanted
    settings = {each["name"] for each in (*container["env"], *of_all["env"])}
    assert settings <= one["environment"].keys()
    assert container["securityContext"]["capabilities"]["add"] == one["cap_add"]
    assert pod.get("hostPID", False) == (one.get("pid") == "host")


def pod_of(name: str, file: str = "nodes.yaml") -> dict[str, Any]:
    """What a DaemonSet of deploy/kubernetes says of its pods."""
    found = yaml.safe_load_all((DEPLOY / file).read_text())
    return next(each["spec"]["template"]["spec"] for each in found if each["metadata"]["name"] == name)


def agents_container(pod: dict[str, Any]) -> dict[str, Any]:
    return next(each for each in pod["containers"] if each["name"] == "agent")


def test_nothing_has_more_than_it_needs() -> None:
    for name, one in SERVICES.items():
        assert one["read_only"], name
        assert one["cap_drop"] == ["ALL"], name
        assert one["security_opt"] == ["no-new-privileges"], name
        assert "privileged" not in one, name
        assert one.get("network_mode", "service:host") == "service:host", f"{name} is on the machine's network"
        assert name == "host" or one["healthcheck"]["test"], name
        assert ("pid" in one) == (name == "dataplane")


def test_no_port_is_taken_twice_and_prometheus_asks_them_all() -> None:
    ports = [one["environment"]["AIRMESH_HEALTH_PORT"] for one in SERVICES.values() if "environment" in one]
    assert len(ports) == len(set(ports)) == sum(COPIES.values())
    asked = yaml.safe_load((SOURCE / "targets.yaml").read_text())
    (own,) = COLLECTOR["service"]["telemetry"]["metrics"]["readers"]
    of_collector = str(own["pull"]["exporter"]["prometheus"]["port"])
    assert {target.split(":")[1] for one in asked for target in one["targets"]} == {*ports, of_collector}
    for published in SERVICES["host"]["ports"]:
        assert published.startswith("127.0.0.1:")


def test_the_servers_are_where_everybody_looks_for_them() -> None:
    given = {name: SERVICES[name]["networks"]["bus"]["ipv4_address"] for name in keys.SERVERS}
    assert given == keys.SERVERS
    url = ",".join(f"nats://{address}:4222" for address in given.values())
    assert COMPOSE["x-environment"]["AIRMESH_NATS_URL"] == url
    assert {SERVICES[name]["environment"]["AIRMESH_BUCKET_REPLICAS"] for name in copies("cluster")} == {str(len(given))}


def test_spans_go_to_the_collector_and_from_there_to_jaeger() -> None:
    takes = COLLECTOR["receivers"]["otlp"]["protocols"]["http"]["endpoint"]
    assert COMPOSE["x-environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"] == f"http://{takes}"
    (given,) = [one for one in SERVICES["jaeger"]["command"] if one.startswith("--set=receivers.")]
    assert COLLECTOR["exporters"]["otlphttp"]["endpoint"] == f"http://{given.partition('=')[2].partition('=')[2]}"
    health = COLLECTOR["extensions"]["healthcheckv2"]["http"]["endpoint"]
    assert SERVICES["collector"]["healthcheck"]["test"][-1] == f"http://{health}/status"
    for pipeline in COLLECTOR["service"]["pipelines"].values():
        for kind in ("receivers", "processors", "exporters"):
            assert set(pipeline[kind]) <= set(COLLECTOR[kind])


def test_the_tools_are_those_of_the_dockerfile() -> None:
    stages = re.findall(r"^FROM \S+ AS (\w+)", (SOURCE / "Dockerfile").read_text(), re.M)
    built = {tool_image(stage) for stage in stages}
    used = {
        one["image"].replace("${AIRMESH_TAG:-", "").replace("}", "") for name, one in SERVICES.items() if name in TOOLS
    }
    assert used == built - {tool_image("tools"), tool_image("server")}


@pytest.mark.parametrize("name", overlays())
def test_an_overlay_lies_over_what_is_there(name: str) -> None:
    over = yaml.safe_load((SOURCE / "overlays" / f"{name}.yaml").read_text())["services"]
    for service, written in over.items():
        new = "image" in written
        assert new != (service in SERVICES), service
        if new:
            assert written["network_mode"].removeprefix("service:") in SERVICES
            assert written["read_only"]
            assert written["cap_drop"] == ["ALL"]
        assert any("state/drill:/drill:ro" in volume for volume in written["volumes"])
        started = written.get("entrypoint", [])
        assert [one for one in started if one.startswith("/drill/")] == [f"/drill/{name}"] * bool(started)
        for volume in written["volumes"]:
            if volume.startswith("../lab"):
                assert (SOURCE / volume.split(":")[0]).exists()


def test_there_is_an_overlay_for_each_drill() -> None:
    assert overlays() == ["clock-jumps", "disk-full", "leader-cut-off", "nats-dies", "service-down"]


def test_secrets_are_made_once_and_for_their_readers_alone(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    assert keys.make_secrets(folder)
    made = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for path in made:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o644 if path.name == "ca.crt" else 0o600) or "nats-" in str(path) or "authority" in str(path)
        assert not mode & 0o077 or path.suffix == ".crt", path
    mounted = {
        Path(volume.split(":")[0]).name
        for one in SERVICES.values()
        for volume in one.get("volumes", ())
        if "/secrets/" in volume.split(":")[0]
    }
    assert mounted <= {path.name for path in folder.rglob("*")} | {"kubeconfig", keys.BGP}
    assert not keys.make_secrets(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == made


def test_secrets_that_are_not_whole_are_named_and_kept(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    keys.make_secrets(folder)
    (folder / "seeds" / "ipam.seed").unlink()
    (folder / "nats-2" / "tls.key").write_bytes(b"")
    left = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(LabError) as refused:
        keys.make_secrets(folder)
    assert f"{folder} is not whole, it lacks nats-2/tls.key, seeds/ipam.seed:" in str(refused.value)
    assert "remove the folder" in str(refused.value)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == left
    assert keys.missing(tmp_path / "empty")[0] == "ca.crt"


def test_secrets_whose_making_was_cut_short_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "secrets"
    with monkeypatch.context() as cut:
        cut.setattr(keys, "write_seeds", None)
        with pytest.raises(TypeError):
            keys.make_secrets(folder)
    assert not folder.exists()
    assert keys.make_secrets(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["secrets"]


def test_who_may_do_what_follows_the_code_and_keys_stay(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    keys.make_secrets(folder)
    kept = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (folder / "nats-1" / "nats.conf").write_text("of an earlier release")
    assert not keys.make_secrets(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == kept


def test_a_seed_that_is_none_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    keys.make_secrets(folder)
    (folder / "seeds" / "cli.seed").write_text("nothing that anybody signs with\n")
    with pytest.raises(LabError, match=r"seeds/cli.seed is no seed of an nkey: remove"):
        keys.make_secrets(folder)


def test_a_kubeconfig_takes_the_place_of_the_folder_that_an_engine_made(tmp_path: Path) -> None:
    given, folder = tmp_path / "given", tmp_path / "secrets"
    given.write_text("apiVersion: v1\n")
    (folder / "kubeconfig").mkdir(parents=True)
    keys.take_kubeconfig(given, folder)
    assert (folder / "kubeconfig").read_text() == "apiVersion: v1\n"


def test_a_fault_is_of_an_overlay_and_of_a_project_that_is_up(tmp_path: Path) -> None:
    project = Project(home=tmp_path)
    with pytest.raises(LabError, match="make compose-up OVERLAY=nats-dies"):
        project.fault("nats-dies")
    with pytest.raises(LabError, match="no overlay is called flood: clock-jumps"):
        project.fault("flood")
    (project.state / "drill").mkdir(parents=True)
    for overlay in {*overlays()} - {CUT}:  # whose sign names a server that runs
        project.fault(overlay)
        assert (project.state / "drill" / overlay).exists()
        project.heal(overlay)
    assert [(path.name, path.read_text()) for path in (project.state / "drill").iterdir()] == [("clock", "+0\n")]


def test_a_clock_cannot_jump_without_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AIRMESH_FAKETIME", str(tmp_path / "none"))
    with pytest.raises(LabError, match=r"no libfaketime at AIRMESH_FAKETIME=.*: apt-get install libfaketime"):
        faketime()
    monkeypatch.setenv("AIRMESH_FAKETIME", str(tmp_path))
    with pytest.raises(LabError, match="clock-jumps"):
        faketime()
