"""Each fault of name service as its facts: the one finding that names it; and nothing where none is."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from proto.findings import EFFECT, OBJECT
from proto.net import Address
from proto.objects import Deployment, EndpointSlice, SliceEndpoint
from services.dns.core.caddyfile import parse
from services.dns.core.corefile import Recipe, render
from services.dns.core.doctor import examine
from services.dns.core.doctor.examine import CODES, Asked, Facts, check, silence, silent_servers, wanted_upstreams
from services.dns.core.doctor.upstreams import Upstream, upstreams
from services.dns.core.question import Answer, answer, question

ONE, TWO, SERVICE, RESOLVER = (ip_address(text) for text in ("10.0.0.1", "10.0.0.2", "10.96.0.10", "192.0.2.53"))
ANSWERED = Asked(answer=Answer("NOERROR", 1, 2.0), times=3, name="kubernetes.default.svc.cluster.local")
SILENT = replace(ANSWERED, answer=None)
COREFILE = render(Recipe(upstreams=(RESOLVER,)))
STUB = COREFILE + "corp.example:53 {\n    forward . 198.51.100.9:5353\n}\n"


def slices(*addresses: Address, ready: bool = True) -> tuple[EndpointSlice, ...]:
    endpoints = tuple(SliceEndpoint((one,), ready=ready, serving=ready, pod_uid=f"u{one}") for one in addresses)
    return (EndpointSlice("kube-system", "kube-dns-x", "kube-dns", endpoints),)


def deployment(replicas: int, ready: int) -> Deployment:
    return Deployment("kube-system", "coredns", replicas, ready)


WELL = Facts(
    service="kube-dns",
    cluster_ips=(SERVICE,),
    slices=slices(ONE, TWO),
    deployment=deployment(2, 2),
    replicas=2,
    corefile=COREFILE,
    servers={"a": ONE, "b": TWO},
    by_server={ONE: ANSWERED, TWO: ANSWERED},
    by_upstream={Upstream(".", str(RESOLVER)): replace(ANSWERED, invalid=Answer("NXDOMAIN", 0, 3.0))},
)
ROOT = Upstream(".", str(RESOLVER))
CORP = Upstream("corp.example", "198.51.100.9", 5353)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    facts: Facts
    codes: tuple[str, ...] = ()
    says: tuple[str, ...] = field(default=())


CASES = {
    "well": Case(facts=WELL),
    "nothing is known of an upstream": Case(facts=replace(WELL, by_upstream={}, corefile=None)),
    "no server is ready": Case(
        facts=replace(WELL, servers={}, slices=slices(ONE, ready=False), deployment=deployment(2, 0), by_server={}),
        codes=("dns-servers-down",),
        says=("0 of 2 pods ready", "10.0.0.1 not ready"),
    ),
    "there is no Deployment": Case(
        facts=replace(WELL, servers={}, slices=(), deployment=None, by_server={}),
        codes=("dns-servers-down",),
        says=("there is no Deployment", "endpoints: none"),
    ),
    "the Service selects other pods": Case(
        facts=replace(WELL, servers={}, slices=slices(), by_server={}),
        codes=("dns-service-selector",),
        says=("2 CoreDNS pods are ready and none is an endpoint", '"k8s-app":"kube-dns"'),
    ),
    "one of two": Case(
        facts=replace(WELL, servers={"a": ONE}, by_server={ONE: ANSWERED}, deployment=deployment(2, 1)),
        codes=("dns-too-few",),
        says=("1 of 2 CoreDNS servers",),
    ),
    "an endpoint that answers nothing": Case(
        facts=replace(WELL, by_server={ONE: ANSWERED, TWO: SILENT}),
        codes=("dns-server-silent",),
        says=("10.0.0.2, UDP port 53: no answer to 3 queries", "1 other servers answered"),
    ),
    "a Corefile that nobody can read": Case(
        facts=replace(WELL, corefile=".:53 {\n    errors\n    cache 30 {\n}\n"),
        codes=("dns-corefile",),
        says=("no CoreDNS that starts now can load it",),
    ),
    "forwarded to the Service": Case(
        facts=replace(
            WELL,
            corefile=render(Recipe(upstreams=(SERVICE,))),
            by_upstream={Upstream(".", str(SERVICE)): SILENT},
        ),
        codes=("dns-loop",),
        says=("10.96.0.10, which is the Service's own address",),
    ),
    "a stub domain forwarded to a server": Case(
        facts=replace(WELL, corefile=COREFILE + f"a.b {{\n forward . {ONE}\n}}\n"),
        codes=("dns-loop",),
        says=("zone a.b", "a CoreDNS server's own address"),
    ),
    "an upstream that answers nothing": Case(
        facts=replace(WELL, by_upstream={ROOT: SILENT}),
        codes=("dns-upstream-silent",),
        says=("the upstream of names outside of the cluster, answers nothing",),
    ),
    "a stale stub domain": Case(
        facts=replace(WELL, corefile=STUB, by_upstream={**WELL.by_upstream, CORP: SILENT}),
        codes=("dns-upstream-silent",),
        says=("198.51.100.9:5353, the upstream of the stub domain corp.example",),
    ),
    "a stub domain that is not served": Case(
        facts=replace(WELL, by_upstream={CORP: replace(ANSWERED, answer=Answer("REFUSED", 0, 1.0))}),
        codes=("dns-upstream-refuses",),
        says=("answers REFUSED",),
    ),
    "an upstream that is slow": Case(
        facts=replace(WELL, by_upstream={ROOT: replace(ANSWERED, answer=Answer("NOERROR", 13, 900.0))}),
        codes=("dns-upstream-slow",),
        says=("takes 900 ms",),
    ),
    "an upstream that lies": Case(
        facts=replace(WELL, by_upstream={ROOT: replace(ANSWERED, invalid=Answer("NOERROR", 1, 3.0))}),
        codes=("dns-upstream-lies",),
        says=("invents addresses",),
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_one_finding_names_the_fault(case: Case) -> None:
    found = [*check(case.facts), *silence(case.facts)]
    assert tuple(one.code for one in found) == case.codes
    text = repr(found)
    assert [words for words in case.says if words not in text] == []


def test_silence_is_an_effect_of_whatever_else_is_found() -> None:
    (found,) = silence(replace(WELL, by_server={ONE: SILENT, TWO: SILENT}))
    assert found.about == "Service kube-system/kube-dns"
    assert OBJECT < found.precedence < EFFECT


def test_a_server_that_may_not_be_asked_is_not_called_silent() -> None:
    facts = replace(WELL, by_server={ONE: SILENT, TWO: SILENT})
    assert silent_servers(facts) == [ONE, TWO]
    (found,) = silence(facts, {ONE})
    assert str(TWO) in found.cause
    assert str(ONE) not in found.cause
    assert list(silence(facts, {ONE, TWO})) == []


def test_every_code_is_found_by_a_case_and_has_a_page() -> None:
    faults = Path(__file__).parents[3] / "docs" / "faults"
    for code in (*CODES, examine.SILENT):
        assert any(code in case.codes for case in CASES.values()), code
        assert (faults / f"{code}.md").is_file(), code


def test_upstreams_are_read_as_coredns_reads_them() -> None:
    text = """
        .:53 {
            forward . 192.0.2.1 [2001:db8::1]:5353 2001:db8::2 tls://192.0.2.2 /etc/resolv.conf dns://192.0.2.3:54
            forward inner.example 192.0.2.4
        }
        dns://a.example:53 b.example. {$ZONE} {
            forward . 192.0.2.5 192.0.2.500 host.example
        }
        (snippet) {
            forward . 192.0.2.6
        }
    """
    assert sorted(map(str, upstreams(parse(text)))) == [
        *("192.0.2.1", "192.0.2.3:54", "192.0.2.4", "192.0.2.5", "192.0.2.5"),
        *("2001:db8::2", "[2001:db8::1]:5353"),
    ]
    assert {one.zone for one in upstreams(parse(text))} == {".", "inner.example", "a.example", "b.example"}
    assert wanted_upstreams("{{{") == ()


def test_an_answer_is_to_its_query() -> None:
    asked = question("a.Example.", 7, 1)
    assert asked == bytes.fromhex("0007 0100 0001 0000 0000 0000") + b"\1a\7Example\0\0\1\0\1"
    reply = struct.pack("!6H", 7, 0x8183, 1, 0, 0, 0) + asked[12:]
    assert answer(asked, reply, 4.0) == Answer("NXDOMAIN", 0, 4.0)
    assert answer(asked, reply.lower(), 4.0) is not None, "names have no case"
    for wrong in (b"", reply[:11], asked, b"\0\x08" + reply[2:], reply[:13] + b"b" + reply[14:]):
        assert answer(asked, wrong, 4.0) is None
    assert question(".", 1, 2)[12:] == b"\0\0\2\0\1"


@pytest.mark.parametrize("name", ["a..b", "x" * 64, ".".join(["x" * 60] * 5), "\u00e9"])
def test_what_is_no_name_is_not_asked(name: str) -> None:
    with pytest.raises(ValueError, match=r"name|ascii"):
        question(name, 1)
