"""The table that BGP speakers are measured with, and what is read off the rounds."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from bench.bgp.exabgp_relay import commands
from bench.bgp.peers import Arrived, Reading
from bench.bgp.report import Run, report
from bench.bgp.speakers import AIRMESH, BIRD, FRR, GOBGP, KERNEL
from bench.bgp.tables import PREFIXES_A_SET, RECEIVER, REFUSED, SENDER, SPEAKER, is_refused, number_of, table
from services.routing.core.bgp.codec.messages import HEADER, MessageKind
from services.routing.core.bgp.codec.updates import UpdateReader, UpdateWriter
from services.routing.core.bgp.filters import prepended
from services.routing.core.bgp.values import Agreed, Family, network_of

FAMILIES = pytest.mark.parametrize(("family", "hop"), [(Family.IPV4, "172.28.0.1"), (Family.IPV6, "fd00:172:28::1")])


def agreed(family: Family) -> Agreed:
    return Agreed(families=frozenset({family}), four_octets=True, external=True)


@FAMILIES
def test_a_table_has_each_prefix_once_and_an_end(family: Family, hop: str) -> None:
    sent = table(family, 2000, hop)
    updates = [UpdateReader(agreed(family)).read(one[HEADER:]) for one in sent.messages]
    prefixes = [prefix for update in updates for come in update.reachable for prefix in come.prefixes]
    assert len(prefixes) == len(set(prefixes)) == sent.count == 2000
    assert updates[-1].end_of_rib is family
    assert all(not update.faults for update in updates)
    refused = {prefix for prefix in prefixes if network_of(family, prefix).subnet_of(REFUSED[family])}  # type: ignore[arg-type]
    assert refused == {prefix for prefix in prefixes if is_refused(family, prefix)}
    assert sent.paths.keys() == set(prefixes) - refused
    assert len(refused) == 20
    sets = {come.attributes for update in updates for come in update.reachable}
    assert 2000 / PREFIXES_A_SET * 0.8 < len(sets) <= 2000 / PREFIXES_A_SET


@FAMILIES
def test_what_arrives_has_to_be_all_by_the_right_paths(family: Family, hop: str) -> None:
    sent = table(family, 200, hop)
    reader, writer = UpdateReader(agreed(family)), UpdateWriter(agreed(family))
    passed: list[bytes] = []
    for one in sent.messages:
        for come in reader.read(one[HEADER:]).reachable:
            kept = [prefix for prefix in come.prefixes if not is_refused(family, prefix)]
            longer = replace(come.attributes, as_path=prepended(come.attributes.as_path, (SPEAKER,)))
            written = writer.write(family, longer, kept)
            assert isinstance(written, list)
            passed += [message[HEADER:] for message in written] if kept else []
    reading = Reading(sent.paths, agreed(family))
    for at, body in enumerate(passed[:-1]):
        reading.take(float(at), MessageKind.UPDATE, body)
    assert not reading.at
    unchanged = UpdateReader(agreed(family)).read(sent.messages[0][HEADER:]).reachable[0]
    as_it_came = writer.write(family, unchanged.attributes, unchanged.prefixes)
    assert isinstance(as_it_came, list)
    reading.take(90.0, MessageKind.UPDATE, as_it_came[0][HEADER:])
    reading.take(91.0, MessageKind.UPDATE, passed[-1])
    assert not reading.at, "some came by another path"
    assert reading.wrong
    for prefix in reading.wrong & {prefix for prefix in unchanged.prefixes if is_refused(family, prefix)}:
        reading.take(92.0, MessageKind.UPDATE, writer.withdraw(family, [prefix])[0][HEADER:])
    reading.take(93.0, MessageKind.UPDATE, passed[0])
    assert reading.at == 93.0
    assert reading.there == sent.paths.keys()
    assert not reading.wrong


def test_what_passes_through_exabgp_is_announced_without_what_is_refused() -> None:
    message = {
        "type": "update",
        "neighbor": {
            "message": {
                "update": {
                    "attribute": {"origin": "igp", "as-path": [SENDER, 7], "community": [[65001, 100]]},
                    "announce": {"ipv4 unicast": {"172.28.0.1": [{"nlri": "192.0.2.0/24"}, {"nlri": "10.1.0.0/16"}]}},
                }
            }
        },
    }
    path, community = "as-path [ 65002 65001 7 ]", "community [ 65001:100 ]"
    assert commands(message, "172.28.1.1", "65002", "10.") == [
        f"neighbor 172.28.1.1 announce attributes next-hop self origin igp {path} {community} nlri 192.0.2.0/24"
    ]


def run(speaker: str, seconds: float | None, number: int = 0, **more: float) -> Run:
    plain = Run(
        speaker=speaker,
        family="IPV4",
        routes=100_000,
        round=number,
        seconds=seconds,
        cpu_seconds=seconds or 1.0,
        pss_mib=36.0,
        rss_mib=37.0,
        whole_rss_mib=90.0,
        arrived=99_000,
        wrong=0,
        messages=5000,
    )
    return replace(plain, **more)  # type: ignore[arg-type]


def test_ratios_are_those_of_the_rounds_and_judged() -> None:
    runs = [run(name, took * (1 + n), n) for n in range(3) for name, took in ((AIRMESH, 0.5), (FRR, 1.0), (GOBGP, 2.0))]
    said = report(runs)
    assert "| airmesh / FRR | 0.5 [0.5-0.5] | ≤ 1.00 | yes |" in said
    assert "| airmesh / GoBGP | 0.25 [0.25-0.25] | ≤ 0.20 | no |" in said
    assert "Memory: 36 MiB more, at most 60: yes." in said


def test_what_did_not_arrive_is_said_and_not_compared() -> None:
    said = report(
        [run(AIRMESH, 0.5), run(BIRD, None), run(KERNEL, 0.6, written=99_000, written_seconds=0.5, written_cpu=0.3)]
    )
    assert "BIRD did not pass the table on: BIRD: never: 99000 came, 0 wrong" in said
    assert "airmesh / BIRD" not in said
    assert "Kernel routes: 198 thousand a second, 330 thousand a second of CPU." in said


@pytest.mark.parametrize(
    ("drawn", "number"), [(65_000, 65_000), (SPEAKER, 65_005), (RECEIVER, 65_006), (65_004, 65_004)]
)
def test_no_path_is_a_loop(drawn: int, number: int) -> None:
    class Fixed(Random):
        def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
            return drawn

    assert number_of(Fixed()) == number
    assert len({SENDER, SPEAKER, RECEIVER}) == 3


def test_a_table_that_never_came_has_no_time() -> None:
    assert Arrived(at=None, count=0, messages=0, wrong=0).at is None
