"""What a person may ask of the router between two segments, and how it is written down for the kernel."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab.cluster import fabric, models
from lab.cluster.record import Record, read_record, write_record
from lab.paths import Paths, Settings, paths
from lab.topology import Fabric, LabError


def lab_of(folder: Path, record: Record | None = None) -> Paths:
    where = paths("air", Settings(labs=folder / "labs", run=folder / "run", cache=folder / "cache"))
    where.state.mkdir(parents=True)
    if record is not None:
        write_record(where, record)
    return where


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("proto:4", "meta l4proto 4"),
        ("udp:4789", "udp dport 4789"),
        ("tcp:179", "tcp dport 179"),
    ],
)
def test_a_filter_reads_and_is_written(text: str, match: str) -> None:
    one = fabric.parse_filter(text)
    assert str(one) == text
    assert f'    {match} counter drop comment "{text}"' in fabric.ruleset([one]).splitlines()


@pytest.mark.parametrize(
    "text", ["", "4", "proto:", "proto:0", "proto:256", "udp:0", "udp:65536", "sctp:1", "udp:x", "udp:²"]
)
def test_what_is_no_filter_is_refused_with_how_to_write_one(text: str) -> None:
    with pytest.raises(LabError, match="write proto:4"):
        fabric.parse_filter(text)


def test_no_filters_leave_none_of_before() -> None:
    assert fabric.ruleset([]).splitlines()[:2] == ["add table inet lab_fabric", "delete table inet lab_fabric"]
    assert "drop" not in fabric.ruleset([])


def test_what_was_dropped_is_read_from_the_kernels_words() -> None:
    rule = {
        "table": "lab_fabric",
        "comment": "proto:4",
        "expr": [{"match": {}}, {"counter": {"packets": 7, "bytes": 1}}],
    }
    listed = {"nftables": [{"metainfo": {}}, {"rule": rule}, {"rule": {"table": "other", "expr": []}}]}
    assert fabric.dropped(json.dumps(listed)) == {"proto:4": 7}


def test_a_flat_fabric_has_no_router(tmp_path: Path) -> None:
    where = lab_of(tmp_path)
    with pytest.raises(LabError, match="lab air is not there"):
        fabric.set_mtu(where, 1400)
    write_record(where, Record(lab="air", nodes=2))
    with pytest.raises(LabError, match="flat fabric, without a router"):
        fabric.set_filters(where, [])
    with pytest.raises(LabError, match="flat fabric, without a router"):
        fabric.set_mtu(where, 1400)
    assert fabric.summary(where) == "fabric flat: one layer-2 network"


def test_a_record_of_before_is_of_a_flat_fabric(tmp_path: Path) -> None:
    where = lab_of(tmp_path)
    where.record.write_text('{"lab": "air", "nodes": 3, "finished": true}')
    record = read_record(where)
    assert record is not None
    assert (record.fabric, record.fabric_mtu, record.model) == (Fabric.FLAT, 0, "")
    assert record.topology.segments[0].bridge == "fabric"


POOLS = [
    {"metadata": {"name": "four"}, "spec": {"cidr": "10.244.0.0/16"}},
    {"metadata": {"name": "six"}, "spec": {"cidr": "fd00:10:244::/56"}},
]


@pytest.mark.parametrize(
    ("model", "four", "six", "auto"),
    [
        ("host-gw", ("Never", "Never"), ("Never", "Never"), None),
        ("vxlan", ("Never", "Always"), ("Never", "Always"), None),
        ("ipip", ("Always", "Never"), ("Never", "Always"), None),
        ("wireguard", ("Never", "Never"), ("Never", "Never"), None),
        ("auto", ("Never", "Never"), ("Never", "Never"), "auto"),
    ],
)
def test_a_model_is_asked_for_by_all_pools_and_nothing_of_the_one_before_stays(
    model: str, four: tuple[str, str], six: tuple[str, str], auto: str | None
) -> None:
    made = {edit.name: edit.patch for edit in models.edits(model, POOLS, felix=False) if edit.kind == "ippool"}
    fields = {name: (patch["spec"]["ipipMode"], patch["spec"]["vxlanMode"]) for name, patch in made.items()}
    assert fields == {"four": four, "six": six}
    assert {patch["metadata"]["annotations"][models.ANNOTATION] for patch in made.values()} == {auto}


def test_encryption_is_asked_for_and_taken_back() -> None:
    def felix(model: str, *, there: bool) -> list[object]:
        edits = models.edits(model, POOLS, felix=there)
        return [edit.patch["spec"]["wireguardEnabled"] for edit in edits if edit.kind == models.FELIX]

    assert felix("wireguard", there=False) == [True]
    assert felix("vxlan", there=True) == [False]
    assert felix("vxlan", there=False) == []
    kinds = {model: [edit.kind for edit in models.edits(model, POOLS, felix=True)] for model in ("wireguard", "vxlan")}
    assert (kinds["wireguard"][0], kinds["vxlan"][-1]) == (models.FELIX, models.FELIX), "a change is two steps"


def test_a_model_that_is_not_served_is_refused_before_anything_is_changed() -> None:
    models.check_served("", ())
    models.check_served("vxlan", ("host-gw", "vxlan"))
    models.check_served("auto", ("host-gw", "vxlan"))
    for model in ("vxlan", "auto"):
        with pytest.raises(LabError, match=f"model {model}: this release serves host-gw alone"):
            models.check_served(model, ("host-gw",))
    with pytest.raises(LabError, match="model 'gre': one of host-gw, vxlan"):
        models.check_served("gre")
