"""Golden pages of the observer: each report as a person sees it and as a program reads it.

``pytest --update-golden tests/golden/cli`` writes them anew, which a review must then allow: names of JSON's fields are
only ever added to.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.text import Text

from cli import show
from cli.reports import agents, bgp, capture, dns, doctor, events, flows, ipam, pairs, pods, policy, routes, trace
from cli.reports.table import Cell, Table, json_text
from cli.reports.text import printable
from proto.bgp_capture import CapturedMessage
from proto.codec import encode_segment
from proto.events import EVENTS_BY_SUBJECT
from proto.flow import DropReason, FlowEvent
from proto.requests import IpamState
from tests.golden.proto.samples import sample_of

FOLDER = Path(__file__).parent
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
HOSTILE = "a\x1b[2J\x1b]0;x\x07\r\nwell\u202e\u2028[red]\u009b\x00\\"
"""Escapes, ends of lines, a mark of direction, markup of rich."""

REPORTS: dict[str, tuple[type[msgspec.Struct], Callable[[Any], tuple[Table, ...]]]] = {
    "status": (agents.Status, agents.tables),
    "pods": (pods.Pods, pods.tables),
    "routes": (routes.Routes, routes.tables),
    "routes-explain": (pairs.Explained, pairs.explained_tables),
    "bgp": (bgp.Sessions, bgp.session_tables),
    "bgp-routes": (bgp.Routes, bgp.route_tables),
    "dns": (dns.DnsState, dns.tables),
    "doctor": (doctor.Diagnosis, doctor.tables),
    "explain": (policy.Verdict, policy.verdict_tables),
    "matrix": (policy.Matrix, policy.matrix_tables),
    "policy-status": (policy.PolicyStatus, policy.status_tables),
    "trace": (trace.Trace, trace.tables),
    "ipam": (IpamState, lambda report: ipam.tables(report, blocks=False, claims=False)),
}
EVERY = pytest.mark.parametrize("name", REPORTS)


def hostile(value: Any, said: str = HOSTILE) -> Any:
    """The same report where every text is what nobody should say."""
    if isinstance(value, str):
        return said
    if isinstance(value, tuple):
        return tuple(hostile(part, said) for part in value)
    if isinstance(value, dict):
        return {name: hostile(part, said) for name, part in value.items()}
    if isinstance(value, msgspec.Struct):
        changed = {name: hostile(getattr(value, name), said) for name in value.__struct_fields__}
        return msgspec.structs.replace(value, **changed)
    return value


def report_of(name: str) -> Any:
    """A full sample; a pool of it is one that there could be."""
    report = sample_of(REPORTS[name][0])
    if not isinstance(report, IpamState):
        return report
    pools = tuple(msgspec.structs.replace(pool, block_size=pool.cidr.prefixlen + 4) for pool in report.pools)
    return msgspec.structs.replace(report, pools=pools)


def page(tables: Sequence[Table]) -> str:
    out = io.StringIO()
    show.tables(show.console(out), tables)
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


def line(cells: Sequence[Cell]) -> str:
    """As `airmesh flows` and `airmesh events` print one."""
    out = io.StringIO()
    show.console(out).print(Text("  ").join(show.text(cell) for cell in cells), soft_wrap=True)
    return out.getvalue()


def check(name: str, text: str, update: bool) -> None:
    path = FOLDER / name
    if update:
        path.write_text(text)
    assert path.exists(), f"{name} is missing: run with --update-golden"
    assert path.read_text() == text, f"{name}: what people or programs read has changed"


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)


@EVERY
def test_page(name: str, update_golden: bool) -> None:
    check(f"{name}.txt", page(REPORTS[name][1](report_of(name))), update_golden)


@EVERY
def test_json(name: str, update_golden: bool) -> None:
    report = report_of(name)
    check(f"{name}.json", json_text(report) + "\n", update_golden)
    assert json.loads(json_text(report, indent=0)) == json.loads(json_text(report))


@EVERY
def test_hostile_words_change_no_line_of_a_page(name: str) -> None:
    tables, report = REPORTS[name][1], report_of(name)
    published = page(tables(hostile(report)))
    assert not {one for one in published if one != "\n" and not one.isprintable()}
    if name != "dns":  # a Corefile has lines, and each is a row
        as_long = page(tables(hostile(report, "x" * len(printable(HOSTILE)))))
        assert published.count("\n") == as_long.count("\n")


@EVERY
def test_hostile_words_come_back_out_of_json(name: str) -> None:
    """On one line whatever is in it, and nothing lost."""
    report = hostile(report_of(name))
    text = json_text(report, indent=0)
    assert "\n" not in text
    assert "\x1b" not in text
    assert json.loads(text) == json.loads(json_text(report))
    assert HOSTILE in texts(json.loads(text))


def texts(tree: Any) -> set[str]:
    if isinstance(tree, str):
        return {tree}
    if isinstance(tree, list):
        return {one for part in tree for one in texts(part)}
    return {one for part in tree.values() for one in texts(part)} if isinstance(tree, dict) else set()


def events_heard() -> list[tuple[str, msgspec.Struct]]:
    """One of each event, on its subject, told by the node that it names."""
    found = []
    for subject, kind in sorted(EVENTS_BY_SUBJECT.items()):
        if kind is not FlowEvent:
            event = sample_of(kind)
            node = getattr(event, "node", "") or "n1"
            found.append((subject.replace("*", encode_segment(node)), event))
    return found


def test_events(update_golden: bool) -> None:
    seen = ""
    for subject, event in events_heard():
        assert events.kind_of(subject) is type(event)
        events.check_speaker(subject, event)
        published = events.PrintedEvent(subject=subject, traceparent=TRACE, event=event)
        seen += line(events.line("12:00:00.000", published)) + json_text(published, indent=0) + "\n"
    check("events.txt", seen, update_golden)


def test_hostile_events_are_one_line_each() -> None:
    for subject, event in events_heard():
        published = events.PrintedEvent(subject=subject, traceparent="", event=hostile(event))
        for shown in (line(events.line("12:00:00.000", published)), json_text(published, indent=0) + "\n"):
            assert shown.count("\n") == 1
            assert "\x1b" not in shown


FLOW: FlowEvent = msgspec.structs.replace(
    sample_of(FlowEvent),
    time_ns=1_700_000_000_123_456_789,
    source=ip_address("10.244.0.3"),
    destination=ip_address("fd00:10:244::7"),
    protocol=6,
    source_port=40000,
    destination_port=5432,
    source_identity=0x1234_5678_9ABC,
    destination_identity=2,
)


def test_flows(update_golden: bool) -> None:
    """Every reason, each with all that an event may tell and with as little as it may."""
    seen = ""
    for reason in DropReason:
        full = msgspec.structs.replace(FLOW, reason=reason.name)
        bare = msgspec.structs.replace(
            full, source_name="", destination_name="", policies=(), rule=-1, revision="", missed=0, interface=""
        )
        seen += line(flows.line(full)) + line(flows.line(bare))
    seen += json_text(FLOW, indent=0) + "\n"
    check("flows.txt", seen, update_golden)


def captured() -> list[CapturedMessage]:
    """A full sample, and with as little as a message may say."""
    full = sample_of(CapturedMessage)
    bare = {"open": None, "notification": None, "withdrawn": (), "reachable": (), "end_of_rib": False, "refresh": ""}
    return [full, msgspec.structs.replace(full, **bare, family=0, faults=(), missed=0)]


def test_captured_messages(update_golden: bool) -> None:
    seen = "".join(line(capture.line("n1", message)) for message in captured())
    seen += json_text(capture.NodeMessage(node="n1", message=captured()[0]), indent=0) + "\n"
    check("bgp-capture.txt", seen, update_golden)
    for message in captured():
        worst = msgspec.structs.replace(hostile(message), direction=message.direction, type=message.type)
        assert line(capture.line(HOSTILE, worst)).count("\n") == 1


@pytest.mark.parametrize(
    ("protocol", "port", "shown"), [(6, 80, "tcp"), (17, 0, "udp"), (1, 0, "icmp"), (58, 0, "icmpv6"), (255, 9, "255")]
)
def test_ends_of_a_flow(protocol: int, port: int, shown: str) -> None:
    flow = msgspec.structs.replace(FLOW, protocol=protocol, destination_port=port)
    said = line(flows.line(flow))
    assert f"  {shown}  " in said
    assert (f"([fd00:10:244::7]:{port})" if port else "(fd00:10:244::7)") in said


def test_hostile_flows_are_one_line_each() -> None:
    said = line(flows.line(hostile(FLOW)))
    assert said.count("\n") == 1
    assert all(one.isprintable() for one in said.removesuffix("\n"))


def test_thousands_of_rows_are_all_there_in_their_order() -> None:
    row = sample_of(pods.PodRow)
    many = tuple(msgspec.structs.replace(row, pod=f"pod-{number:04}") for number in range(2000))
    report = pods.Pods(pods=many)
    shown = page(pods.tables(report)).splitlines()
    assert shown[1] == "Pods (2000)"
    assert [text.split()[1] for text in shown[3:]] == [one.pod for one in many]
    assert [one["pod"] for one in json.loads(json_text(report))["pods"]] == [one.pod for one in many]


@pytest.mark.parametrize(
    ("prefix", "size", "possible"),
    [("10.0.0.0/16", 26, "1024"), ("10.0.0.0/26", 26, "1"), ("fd00::/48", 122, "2^74"), ("10.0.0.0/26", 24, "none")],
)
def test_a_pool_says_how_many_blocks_it_has(prefix: str, size: int, possible: str) -> None:
    """Also one whose blocks are larger than itself, which gives none: the page tells what is wrong with it."""
    report = report_of("ipam")
    pool = msgspec.structs.replace(report.pools[0], cidr=ip_network(prefix), block_size=size)
    (shown, *_) = ipam.tables(msgspec.structs.replace(report, pools=(pool,)), blocks=False, claims=False)
    assert shown.rows[0][4] == possible


def test_no_golden_file_is_left_over() -> None:
    lines = {"bgp-capture.txt", "events.txt", "flows.txt"}
    expected = lines | {f"{name}.{kind}" for name in REPORTS for kind in ("txt", "json")}
    assert {path.name for path in FOLDER.iterdir() if path.suffix in (".txt", ".json")} == expected
