"""Sessions that end, restart, refresh and exceed; what is written to a peer, when, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address, ip_network

import pytest

from services.routing.core.bgp.peers import Action, FilterRule, MatchOperator, TableSettings
from services.routing.core.bgp.rib.entries import Entry, Folded
from services.routing.core.bgp.rib.groups import FOLDED_AT_ONCE, LOG_PER_PREFIX, LONG_LOG
from services.routing.core.bgp.rib.neighbors import Completed
from services.routing.core.bgp.values import Attributes, Prefix, Reachable, Unreachable, Update
from tests.core.routing.bgp.rib_speaker import NODE, OURS, V4, V6, Speaker, attributes, prefix

P, Q, R = "192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24"
LLGR_STALE, NO_LLGR = 0xFFFF0006, 0xFFFF0007


def two_switches() -> Speaker:
    one = Speaker()
    one.up("tor-a", 65001, "172.31.0.1")
    one.up("tor-b", 65002, "172.31.1.1")
    return one


A = attributes(65001, 65100, hop="172.31.0.1")
B = attributes(65002, 65100, hop="172.31.1.1")


# What peers take back, and sessions that end.


def test_what_is_taken_back_is_gone_and_what_was_never_there_does_not_matter() -> None:
    one = two_switches()
    one.learn("tor-a", f"{P} {Q}", A)
    one.learn("tor-b", P, B)
    assert one.used() == {P: "tor-a tor-b", Q: "tor-a"}
    one.unlearn("tor-a", f"{P} {R}")
    assert one.decide() == {P: "tor-b"}
    one.unlearn("tor-a", P)
    assert one.tables.undecided == 0


def test_an_announcement_replaces_the_one_before() -> None:
    one = two_switches()
    one.learn("tor-a", P, A)
    one.decide()
    one.learn("tor-a", P, replace(A))
    assert one.tables.undecided == 0, "the same again is no change"
    one.learn("tor-a", P, replace(A, med=4))
    assert one.decide() == {P: "tor-a"}
    assert [path.attributes.med for _, path in one.tables.received("tor-a", V4)] == [4]


def test_paths_of_one_prefix_differ_by_their_identifiers() -> None:
    one = Speaker()
    one.up("rr", OURS, "172.31.0.9", receives_paths=True)
    one.learn("rr", P, attributes(65001, hop="172.31.0.1"), 1)
    one.learn("rr", P, attributes(65001, hop="172.31.1.1"), 2)
    one.learn("rr", P, attributes(65001, 65100, hop="172.31.2.1"), 0)
    assert one.used() == {P: "rr rr"}
    assert len(one.tables.why(V4, prefix(P))) == 3
    one.unlearn("rr", P, 1)
    assert one.decide() == {P: "rr"}
    one.unlearn("rr", P, 2)
    one.unlearn("rr", P, 0)
    assert one.decide() == {P: ""}


def test_a_lost_peer_takes_its_paths_with_it() -> None:
    one = two_switches()
    one.learn("tor-a", f"{P} {Q}", A)
    one.learn("tor-b", P, B)
    one.decide()
    one.tables.peer_down("tor-a")
    assert one.decide() == {P: "tor-b", Q: ""}
    one.learn("tor-a", P, A)
    one.tables.peer_down("tor-a")
    one.tables.end_of_rib("tor-a", V4)
    assert one.tables.undecided == 0, "what comes of a peer that is gone is nothing"
    assert one.tables.next_hops() == ((B.next_hop, ""),)


def test_families_that_were_not_agreed_on_are_not_taken() -> None:
    one = two_switches()
    one.learn("tor-a", "2001:db8:5::/48", A)
    assert one.used(V6) == {}


# Restarts (RFC 4724, RFC 9494) and refreshes (RFC 7313).


def test_paths_of_a_peer_that_restarts_are_used_until_it_has_sent_all_again() -> None:
    one = two_switches()
    one.learn("tor-a", f"{P} {Q} {R}", A)
    one.decide()
    one.tables.peer_down("tor-a", keep=[V4])
    one.tables.peer_down("tor-a", keep=[V4])
    assert one.decide() == {}
    assert one.tables.count("tor-a")[V4].stale == 3
    one.up("tor-a", 65001, "172.31.0.1")
    one.learn("tor-a", P, replace(A))
    one.learn("tor-a", Q, replace(A, med=1))
    assert one.decide() == {Q: "tor-a"}
    assert one.tables.count("tor-a")[V4].stale == 1
    one.tables.end_of_rib("tor-a", V4)
    assert one.decide() == {R: ""}


def test_time_that_is_up_takes_what_is_stale() -> None:
    one = two_switches()
    one.learn("tor-a", P, A)
    one.decide()
    one.tables.peer_down("tor-a", keep=[V4])
    one.tables.refresh_end("tor-a", V4)
    one.tables.stale_expired("tor-a", V6)
    assert one.decide() == {}
    one.tables.stale_expired("tor-a", V4)
    assert one.decide() == {P: ""}
    assert list(one.tables.received("tor-a", V4)) == []


def test_a_second_restart_does_not_keep_what_was_not_sent_after_the_first() -> None:
    one = two_switches()
    one.learn("tor-a", f"{P} {Q}", A)
    one.tables.peer_down("tor-a", keep=[V4])
    one.up("tor-a", 65001, "172.31.0.1")
    one.learn("tor-a", P, A)
    one.tables.peer_down("tor-a", keep=[V4])
    assert one.used() == {P: "tor-a"}


def test_a_family_that_is_not_kept_or_not_agreed_on_again_goes_at_once() -> None:
    one = Speaker()
    one.up("tor-a", 65001, "172.31.0.1", families=[V4, V6])
    one.learn("tor-a", P, A)
    one.learn("tor-a", "2001:db8:5::/48", replace(A, next_hop=attributes(hop="2001:db8::7").next_hop))
    one.decide()
    one.tables.peer_down("tor-a", keep=[V4])
    assert one.decide() == {"2001:db8:5::/48": ""}
    one.up("tor-a", 65001, "172.31.0.1", families=[V6])
    assert one.decide() == {P: ""}


def test_long_lived_stale_paths_are_the_last_resort_and_sent_to_who_knows_of_them() -> None:
    one = two_switches()
    one.up("old", OURS, "172.31.8.1")
    one.up("new", OURS, "172.31.8.2", long_lived=True)
    one.learn("tor-a", f"{P} {Q}", A)
    one.learn("tor-a", R, replace(A, communities=(NO_LLGR,)))
    one.learn("tor-b", P, replace(B, local_pref=1, as_path=attributes(65002, 1, 2, 3).as_path))
    one.decide()
    one.tables.peer_down("tor-a", keep=[V4])
    one.tables.long_lived_begun("tor-a", V4)
    assert one.decide() == {P: "tor-b", Q: "tor-a", R: ""}
    assert one.sent("old", Q) is None
    sent = one.sent("new", Q)
    assert sent is not None
    assert LLGR_STALE in sent.communities
    one.tables.peer_down("tor-a", keep=[V4])
    one.tables.settings_changed("tor-a", TableSettings(allowed_own_asn=1))
    assert one.used()[Q] == "tor-a"
    assert LLGR_STALE in next(path for text, path in one.tables.received("tor-a", V4)).attributes.communities
    one.up("tor-a", 65001, "172.31.0.1")
    one.learn("tor-a", Q, A)
    one.tables.end_of_rib("tor-a", V4)
    assert one.used() == {P: "tor-b", Q: "tor-a"}
    sent = one.sent("old", Q)
    assert sent is not None
    assert LLGR_STALE not in sent.communities


def test_a_refresh_takes_what_is_not_sent_again() -> None:
    one = two_switches()
    one.learn("tor-a", f"{P} {Q}", A)
    one.decide()
    one.tables.refresh_begin("tor-a", V4)
    one.learn("tor-a", P, A)
    one.tables.end_of_rib("tor-a", V4)
    assert one.decide() == {}
    one.tables.refresh_end("tor-a", V4)
    assert one.decide() == {Q: ""}
    one.tables.refresh_end("tor-a", V4)
    assert one.used() == {P: "tor-a"}


# Too many prefixes (RFC 4486).


def test_many_prefixes_warn_and_too_many_end_the_session() -> None:
    one = Speaker()
    one.up("tor-a", 65001, "172.31.0.1", most_prefixes=10)
    texts = [f"192.0.2.{number}/32" for number in range(20)]
    assert one.learn("tor-a", texts[:7], A) == ()
    [warning] = one.learn("tor-a", texts[7:8], A)
    assert (warning.count, warning.most, warning.exceeded) == (8, 10, False)
    assert one.learn("tor-a", texts[:10], A) == ()
    assert one.learn("tor-a", texts[:10], replace(A, med=1)) == (), "ten are as many as there may be"
    [end] = one.learn("tor-a", texts[5:], replace(A, med=2))
    assert (end.peer, end.family, end.count, end.exceeded) == ("tor-a", V4, 10, True)
    assert len(list(one.tables.received("tor-a", V4))) == 10
    assert [path.received.med for _, path in one.tables.received("tor-a", V4)] == [1] * 5 + [2] * 5


def test_rejected_prefixes_and_paths_count_too() -> None:
    one = Speaker()
    one.up("tor-a", 65001, "172.31.0.1", most_prefixes=2, default_import=False, receives_paths=True)
    one.learn("tor-a", P, A, 1)
    one.learn("tor-a", P, A, 2)
    [end] = one.learn("tor-a", P, A, 3)
    assert end.exceeded


# What is written to peers.


def test_a_peer_is_sent_all_then_what_changes_and_nothing_twice() -> None:
    one = two_switches()
    one.learn("tor-a", f"{P} {Q}", A)
    one.decide()
    assert one.drain("tor-b") == ([f"+{P}", f"+{Q}"], [Completed.INITIAL])
    assert one.drain("tor-a") == ([], [Completed.INITIAL])
    one.learn("tor-a", R, A)
    one.unlearn("tor-a", P)
    one.decide()
    assert one.drain("tor-b") == ([f"-{P}", f"+{R}"], [])
    assert one.drain("tor-b") == ([], [])
    assert not one.tables.owes("tor-b")


def test_a_route_that_came_and_went_is_not_written() -> None:
    one = two_switches()
    one.drain("tor-b")
    one.learn("tor-a", P, A)
    one.decide()
    one.unlearn("tor-a", P)
    one.decide()
    assert one.drain("tor-b") == ([], [])


def test_prefixes_with_equal_attributes_are_written_together() -> None:
    one = two_switches()
    for number in range(50):
        one.learn("tor-a", f"192.0.2.{number}/32", attributes(65001, 65100 + number % 2))
    one.decide()
    [batch] = one.tables.pending("tor-b").batches
    assert [len(run.prefixes) for run in batch.reachable] == [25, 25]
    assert batch.unreachable == ()


def test_end_of_rib_comes_after_the_routes_that_were_there() -> None:
    """Those of peers that were received before and not yet decided are among them."""
    one = two_switches()
    one.learn("tor-a", [f"192.0.2.{number}/32" for number in range(10)], A)
    one.up("node-2", OURS, "172.31.9.1")
    assert one.tables.pending("node-2").completed == ()
    one.tables.decide(4)
    assert one.drain("node-2", 3) == ([f"+192.0.2.{number}/32" for number in range(4)], [])
    one.tables.decide(100)
    pending = one.tables.pending("node-2", 3)
    assert (pending.completed, pending.more) == ((), True)
    assert one.drain("node-2", 3)[1] == [Completed.INITIAL]


def test_a_speaker_that_has_just_started_waits_for_its_peers() -> None:
    one = Speaker()
    one.tables.defer(V4, deferred=True)
    one.up("tor-a", 65001, "172.31.0.1")
    one.up("tor-b", 65002, "172.31.1.1")
    one.learn("tor-a", P, A)
    assert one.tables.undecided == 0
    assert one.tables.decide() == []
    assert one.drain("tor-b") == ([], [])
    one.tables.defer(V4, deferred=False)
    one.decide()
    assert one.drain("tor-b") == ([f"+{P}"], [Completed.INITIAL])


def test_a_peer_that_asks_is_sent_all_again() -> None:
    one = two_switches()
    one.learn("tor-a", f"{P} {Q}", A)
    one.decide()
    one.drain("tor-b")
    one.unlearn("tor-a", P)
    one.learn("tor-a", R, A)
    one.decide()
    one.tables.refresh_requested("tor-b", V4)
    assert one.drain("tor-b") == ([f"-{P}", f"+{R}", f"+{Q}", f"+{R}"], [Completed.REFRESH])
    one.tables.refresh_requested("tor-b", V4)
    written, completed = one.drain("tor-b")
    assert (sorted(written), completed) == ([f"+{Q}", f"+{R}"], [Completed.REFRESH])


def test_other_export_settings_send_what_differs() -> None:
    one = two_switches()
    one.learn("tor-a", f"{P} {Q}", A)
    one.decide()
    one.drain("tor-b")
    one.learn("tor-a", R, A)
    one.decide()
    one.tables.settings_changed("tor-b", TableSettings(default_export=False))
    one.decide()
    assert one.drain("tor-b") == ([f"-{P}", f"-{Q}"], [])
    one.tables.settings_changed("tor-b", TableSettings())
    one.decide()
    assert one.drain("tor-b")[0] == [f"+{P}", f"+{Q}", f"+{R}"]


def test_a_peer_that_comes_is_served_in_pieces_and_one_that_moves_there_loses_nothing() -> None:
    one = two_switches()
    one.learn("tor-a", [f"192.0.2.{number}/32" for number in range(100)], A)
    one.decide()
    one.drain("tor-b")
    settings = TableSettings(allowed_own_asn=1, keep_next_hop=True)
    one.up("tor-c", 65003, "172.31.2.1", keep_next_hop=True)
    assert one.tables.undecided == 100
    assert one.tables.decide(30) == []
    assert len(one.drain("tor-c")[0]) == 30
    one.tables.settings_changed("tor-b", settings)
    assert one.decide() == {}
    written = one.drain("tor-b")[0]
    assert sorted(written) == sorted(f"+192.0.2.{number}/32" for number in range(100))
    written, completed = one.drain("tor-c")
    assert (len(written), completed) == (70, [Completed.INITIAL])


def test_a_path_goes_back_to_nobody_it_came_from() -> None:
    one = two_switches()
    one.up("tor-c", 65003, "172.31.2.1")
    for name in ("tor-a", "tor-b", "tor-c"):
        one.drain(name)
    one.learn("tor-a", P, A)
    one.decide()
    assert [one.drain(name)[0] for name in ("tor-a", "tor-b", "tor-c")] == [[], [f"+{P}"], [f"+{P}"]]
    one.learn("tor-b", P, replace(B, as_path=attributes(65002).as_path))
    one.decide()
    assert [one.drain(name)[0] for name in ("tor-a", "tor-b", "tor-c")] == [[f"+{P}"], [f"-{P}"], [f"+{P}"]]


def test_several_paths_are_sent_with_identifiers() -> None:
    one = two_switches()
    one.up("rr", OURS, "172.31.9.1", sends_paths=True, keep_next_hop=True)
    one.up("node", OURS, "172.31.9.2", keep_next_hop=True)
    one.learn("tor-a", P, A)
    one.learn("tor-b", P, B)
    one.decide()
    assert one.drain("rr")[0] == [f"+{P}#1", f"+{P}#2"]
    assert one.drain("node")[0] == [f"+{P}"]
    one.unlearn("tor-a", P)
    one.decide()
    assert one.drain("rr")[0] == [f"-{P}#2", f"+{P}#1"]
    assert [(number, what.next_hop) for _, number, what in one.tables.sent("rr", V4)] == [(1, B.next_hop)]


# What it costs.


def test_five_hundred_clients_share_what_is_worked_out_and_written() -> None:
    one = Speaker()
    clients = [f"node-{number}" for number in range(500)]
    for number, name in enumerate(clients):
        one.up(name, OURS, f"10.{number // 250}.1.{number % 250}", client=True, cluster_id=NODE)
        one.tables.pending(name)
    one.learn("node-7", [f"192.0.2.{number}/32" for number in range(100)], attributes(hop="10.0.1.7"))
    one.decide()
    one.learn("node-8", "198.51.100.0/24", attributes(hop="10.0.1.7", originator_id=IPv4Address("10.0.1.7")))
    one.decide()
    assert len(one.tables._loc[V4].groups) == 1
    batches = {name: one.tables.pending(name).batches[0] for name in clients}
    assert len({id(batch) for name, batch in batches.items() if name not in ("node-7", "node-8")}) == 1
    [shared] = batches["node-0"].reachable
    assert len(shared.prefixes) == 101
    assert [run.prefixes for run in batches["node-7"].reachable] == [(prefix("198.51.100.0/24"),)]
    assert [len(run.prefixes) for run in batches["node-8"].reachable] == [100]


def test_a_client_shares_what_is_written_of_the_others() -> None:
    one = Speaker()
    for number in range(5):
        one.up(f"node-{number}", OURS, f"10.0.1.{number}", client=True, cluster_id=NODE)
        one.tables.pending(f"node-{number}")
        one.learn(f"node-{number}", f"192.0.2.{number}/32 198.51.100.{number}/32", attributes(hop=f"10.0.1.{number}"))
    one.decide()
    runs = {number: one.tables.pending(f"node-{number}").batches[0].reachable for number in range(5)}
    assert [len(found) for found in runs.values()] == [4] * 5
    assert len({id(run) for found in runs.values() for run in found}) == 5


@pytest.mark.parametrize("sends_paths", [False, True])
def test_a_peer_that_does_not_read_costs_no_more_than_the_table(sends_paths: bool) -> None:
    """However often routes flap, it lacks one change of each prefix: from what it has to what there is."""
    one = two_switches()
    one.up("rr", OURS, "172.31.9.1", sends_paths=sends_paths, keep_next_hop=True)
    prefixes = tuple(bytes((24, 20, number >> 8, number & 0xFF)) for number in range(500))
    whole = Reachable(family=V4, attributes=B, prefixes=prefixes)
    one.tables.update("tor-b", Update(reachable=(whole,)))
    one.decide()
    view: dict[tuple[Prefix, int], Attributes] = {}
    read(one, "rr", view)
    assert len(view) == 500
    changed = replace(B, communities=(5,))
    one.tables.update("tor-b", Update(reachable=(replace(whole, attributes=changed),)))
    one.decide()
    for flap in range(8):
        what = attributes(65001, 65100, med=flap)
        flapping = prefixes[:250]
        one.tables.update("tor-a", Update(reachable=(Reachable(family=V4, attributes=what, prefixes=flapping),)))
        one.decide()
        one.tables.update("tor-a", Update(unreachable=(Unreachable(family=V4, prefixes=flapping),)))
        one.decide()
        for name in ("tor-a", "tor-b"):
            one.drain(name)
    assert max(len(group._log) for group in one.tables._loc[V4].groups.values()) <= LOG_PER_PREFIX * LONG_LOG
    written = read(one, "rr", view)
    assert written <= 3 * 500
    assert view == {(sent, number): what for sent, number, what in one.tables.sent("rr", V4)}
    assert {what.communities for what in view.values()} == {(5,)}


def test_what_peers_lack_that_do_not_read_is_folded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve of them, each at a place of its own, while routes flap: a round folds no more than it may."""
    at_once: list[int] = []
    add = Folded.add

    def counting(self: Folded, entries: Sequence[Entry]) -> None:
        at_once[-1] += len(entries)
        add(self, entries)

    monkeypatch.setattr(Folded, "add", counting)
    one = two_switches()
    clients = [f"node-{number}" for number in range(12)]
    for number, name in enumerate(clients):
        one.up(name, OURS, f"10.0.1.{number}", client=True, cluster_id=NODE, keep_next_hop=True)
    views: dict[str, dict[tuple[Prefix, int], Attributes]] = {name: {} for name in clients}
    prefixes = tuple(bytes((24, 20, number >> 8, number & 0xFF)) for number in range(1500))
    logs = one.tables._loc[V4].groups.values()
    longest = 0
    for flap in range(24):
        what = replace(B, med=flap) if flap % 2 == 0 else None
        gone = () if what else (Unreachable(family=V4, prefixes=prefixes),)
        come = (Reachable(family=V4, attributes=what, prefixes=prefixes),) if what else ()
        one.tables.update("tor-b", Update(unreachable=gone, reachable=come))
        while one.tables.undecided:
            at_once.append(0)
            one.tables.decide(500)
            longest = max(longest, *(len(group._log) for group in logs))
        if flap < len(clients):
            read(one, clients[flap], views[clients[flap]])
        one.drain("tor-a")
        one.drain("tor-b")
    assert max(at_once) == FOLDED_AT_ONCE, "they are far behind"
    assert longest <= 2 * LOG_PER_PREFIX * len(prefixes) + 500
    for name in clients:
        read(one, name, views[name])
        assert views[name] == {}, "all is gone"


def test_peers_of_a_group_that_is_split_lack_the_same_and_then_each_its_own() -> None:
    one = two_switches()
    clients = ("node-1", "node-2")
    for number, name in enumerate(clients):
        one.up(name, OURS, f"10.0.1.{number}", client=True, cluster_id=NODE, keep_next_hop=True)
    views: dict[str, dict[tuple[Prefix, int], Attributes]] = {name: {} for name in clients}
    tens, twenties = ([f"{first}.{n // 256}.{n % 256}.0/24" for n in range(1200)] for first in (10, 20))

    def flap(texts: list[str]) -> None:
        for number in range(9):
            one.learn("tor-b", texts, replace(B, med=number))
            one.decide()
            one.drain("tor-a")

    one.learn("tor-b", [*tens, *twenties], B)
    one.decide()
    for name in clients:
        read(one, name, views[name])
    flap(tens)
    none = FilterRule(action=Action.REJECT, family=V4, network=ip_network("10.0.0.0/8"), operator=MatchOperator.IN)
    shared = TableSettings(client=True, cluster_id=NODE, keep_next_hop=True)
    one.tables.settings_changed("node-2", replace(shared, exports=(none,)))
    one.decide()
    flap(twenties)
    for name, count in zip(clients, (2400, 1200), strict=True):
        read(one, name, views[name])
        assert views[name] == {(sent, number): what for sent, number, what in one.tables.sent(name, V4)}
        assert len(views[name]) == count


def read(one: Speaker, name: str, view: dict[tuple[Prefix, int], Attributes]) -> int:
    """A peer reads all that there is for it; how many routes that were."""
    written = 0
    while one.tables.owes(name):
        for batch in one.tables.pending(name, 10_000).batches:
            for gone in batch.unreachable:
                written += len(gone.prefixes)
                for gone_prefix, number in zip(gone.prefixes, gone.path_ids or (0,) * len(gone.prefixes), strict=True):
                    assert view.pop((gone_prefix, number), None) is not None, "taken back, and never sent"
            for come in batch.reachable:
                written += len(come.prefixes)
                numbers = come.path_ids or (0,) * len(come.prefixes)
                view |= dict.fromkeys(zip(come.prefixes, numbers, strict=True), come.attributes)
    return written


@pytest.mark.parametrize("peers", [1, 3])
def test_a_change_costs_what_it_changes(peers: int) -> None:
    one = Speaker()
    for number in range(peers):
        one.up(f"tor-{number}", 65001 + number, f"172.31.{number}.1")
        one.learn(
            f"tor-{number}", [f"10.{a}.{b}.0/24" for a in range(1, 9) for b in range(250)], attributes(65001 + number)
        )
    one.decide()
    for number in range(peers):
        one.drain(f"tor-{number}")
    one.learn("tor-0", P, A)
    assert one.tables.undecided == 1
    assert len(one.tables.decide()) == 1
    for number in range(1, peers):
        [batch] = one.tables.pending(f"tor-{number}").batches
        assert [len(run.prefixes) for run in batch.reachable] == [1]
    assert len(one.asked) == 1, "a next hop is asked for once"


def test_prefixes_with_equal_attributes_share_a_path() -> None:
    one = Speaker()
    one.up("tor-a", 65001, "172.31.0.1")
    for number in range(200):
        one.learn("tor-a", [f"10.1.{number}.0/24", f"10.2.{number}.0/24"], A)
    one.decide()
    assert len({id(path) for _, path in one.tables.received("tor-a", V4)}) == 1
    assert len({id(paths) for paths in one.tables.chosen(V4).values()}) == 1


# A table for one peer, and for several.


def alike(one: Speaker, *names: str) -> None:
    """Peers that are sent the same, since they agree in all but their addresses."""
    for number, name in enumerate(names, 1):
        one.up(name, 65001, f"172.31.0.{number}")


def test_a_peer_alone_has_none_of_its_own_paths_in_its_table_until_another_comes() -> None:
    one = Speaker()
    alike(one, "a")
    one.drain("a")
    one.learn("a", f"{P} {Q}", A)
    one.decide()
    assert one.drain("a") == ([], [])
    assert one.tables.count("a")[V4].sent == 0
    alike_b = one.tables.undecided
    one.up("b", 65001, "172.31.0.2")
    assert (alike_b, one.tables.undecided) == (0, 2), "what the table lacks is decided again"
    one.decide()
    assert one.drain("b") == ([f"+{P}", f"+{Q}"], [Completed.INITIAL])
    assert one.drain("a") == ([], [])
    one.unlearn("a", P)
    one.decide()
    assert one.drain("b") == ([f"-{P}"], [])
    assert one.drain("a") == ([], [])


def test_a_peer_alone_is_sent_what_takes_the_place_of_its_own_path_and_loses_it_again() -> None:
    one = Speaker()
    alike(one, "a")
    one.up("rr", OURS, "172.31.9.9", default_import=True)
    one.drain("a")
    one.learn("a", P, A)
    one.decide()
    one.learn("rr", P, attributes(65009, hop="172.31.9.9", local_pref=300))
    one.decide()
    assert one.drain("a") == ([f"+{P}"], [])
    one.unlearn("rr", P)
    one.decide()
    assert one.drain("a") == ([f"-{P}"], [])
    assert one.sent("a", P) is None


def test_a_peer_that_moves_to_the_table_of_another_one_is_sent_what_that_lacked() -> None:
    one = Speaker()
    alike(one, "a")
    one.up("b", 65001, "172.31.0.2", default_export=False)
    one.learn("a", P, A)
    one.decide()
    assert one.drain("b") == ([], [Completed.INITIAL])
    one.tables.settings_changed("b", TableSettings())
    one.decide()
    assert one.drain("b") == ([f"+{P}"], [])
    one.drain("a")
    assert one.sent("b", P) is not None
    assert one.sent("a", P) is None


def test_of_an_update_what_is_there_already_and_what_is_guarded_fares_as_if_it_came_alone() -> None:
    one = two_switches()
    one.learn("tor-b", P, B)
    one.decide()
    one.learn("tor-a", f"{P} {Q} 127.0.0.0/8 {R}", A)
    assert one.decide() == {P: "tor-a tor-b", Q: "tor-a", R: "tor-a"}
    assert {
        path.rejection is None for key, path in one.tables.received("tor-a", V4) if key == prefix("127.0.0.0/8")
    } == {False}
