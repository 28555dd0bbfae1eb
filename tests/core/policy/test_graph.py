"""The graph is a function of the present state: state lists in every order end where a fresh one does."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from random import Random

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kit.selectors import hidden_key
from proto.codec import encode
from proto.identity import RelevantKeys
from proto.objects import KubernetesObject, Labels, Namespace, Pod, Selector
from proto.policy import CidrPartition, Revision
from services.policy.core.graph import Graph, Held
from services.policy.core.identities import NO_KEYS, Member, Roster
from services.policy.core.limits import About, Limits
from services.policy.core.named import NamedKey, relevant_keys
from tests.core.policy.cluster import feed, kernel_of, keyed, probes
from tests.core.policy.notation import namespace, pod, policies
from tests.core.policy.worlds import World, seeded
from tests.core.states import Driver, every_order, follow, run, script

Objects = dict[str, KubernetesObject]
CYCLES = 60


def fresh(objects: Objects) -> Graph:
    return feed(Graph(), objects)


def image(graph: Graph) -> object:
    """All that a graph says, without how it got there."""
    assert not graph.dirty
    return (graph.compiled, dict(graph.partitions), graph.relevant, graph.problems, graph.refused)


class Compiled(Driver[str, KubernetesObject]):
    """A graph whose nodes compute identities with the keys that its policies need."""

    def __init__(self) -> None:
        self.graph = Graph()

    def put(self, key: str, value: KubernetesObject | None) -> None:
        self.graph.put(key, value)

    def flush(self) -> None:
        self.graph.run()

    def settle(self) -> object:
        settled_with_relevant(self.graph)
        return image(self.graph)


def compiled_again(objects: Objects) -> object:
    return image(fresh(objects))


@every_order(seeds=CYCLES)
def test_incremental_equals_fresh(expander: str, seed: int) -> None:
    states = [keyed(seeded(seed * 100 + index).world(policies=4)) for index in range(4)]
    follow(Compiled, compiled_again, states, expander, seed)


@pytest.mark.parametrize("seed", range(12))
def test_of_what_is_gone_nothing_stays(seed: int) -> None:
    """Else memory would grow with all that ever was."""
    states = [keyed(seeded(seed * 100 + index).world(policies=4)) for index in range(3)]
    driver = Compiled()
    run(lambda: driver, compiled_again, script([*states, {}], "in order", seed))
    graph = driver.graph
    graph.roster.moved.clear()  # its reader has read it
    graph.take_used()
    parts = (graph, graph.roster, graph._matches, graph._matches.sets, graph._sizes, graph._naming)
    left = {name: held for part in parts for name, held in vars(part).items() if isinstance(held, dict | set) and held}
    assert {name: held for name, held in left.items() if name != "_rules"} == {}, "the rules of a turn go with the next"


def settled_with_relevant(graph: Graph) -> None:
    graph.run()
    graph.hold(Held(relevants=frozenset({graph.relevant})))
    graph.run()


def mutations(world: World, chance: Random) -> Iterator[tuple[str, KubernetesObject | None]]:
    """Single small events, as a cluster lives: one object comes, changes or goes."""
    objects = keyed(world)
    other = keyed(seeded(chance.randrange(10**6)).world())
    while True:
        pool = objects if chance.random() < 0.4 else other
        key = chance.choice(sorted(pool))
        if key == "namespace.kube-system":
            continue
        yield key, None if chance.random() < 0.3 else pool[key]


@pytest.mark.parametrize("seed", range(CYCLES))
def test_a_hundred_single_events_end_where_a_fresh_graph_does(seed: int) -> None:
    chance = Random(seed)
    world = seeded(seed).world()
    now = keyed(world)
    graph = feed(Graph(), now)
    for (key, value), step in zip(mutations(world, chance), range(100), strict=False):
        graph.put(key, value)
        if value is None:
            now.pop(key, None)
        else:
            now[key] = value
        if step % 20 == 19 or chance.random() < 0.1:
            settled_with_relevant(graph)
            assert image(graph) == image(fresh(now)), f"seed {seed}, step {step}"


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_any_way_from_one_state_to_another(one: int, other: int, seed: int) -> None:
    states = [keyed(seeded(one).world()), keyed(seeded(other).world())]
    run(Compiled, compiled_again, script(states, "in order", seed))


@pytest.mark.parametrize("seed", range(CYCLES))
def test_while_relevant_keys_change_both_identities_have_their_rules(seed: int) -> None:
    """A node that computes with either set of keys finds rules, and they are the present ones."""
    world = seeded(seed).world()
    graph = Graph()
    for key, value in keyed(world).items():
        graph.put(key, value)
    graph.run()
    graph.hold(Held(relevants=frozenset({NO_KEYS})))
    graph.run()
    for one in world.pods:
        for relevant in (NO_KEYS, graph.relevant):
            found = graph.roster.identity_of(one, relevant)
            assert found is None or found in graph.compiled


def test_only_what_a_change_touches_is_recompiled() -> None:
    spec = "[{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}]}]"
    (allow,) = policies(spec)
    objects: Objects = {"k": Namespace("kube-system", "u"), "x": namespace("x"), "p": allow}
    objects |= {name: pod(name) for name in ("x/a", "x/b", "x/c")}
    graph = feed(Graph(), objects)

    def touched(key: str, value: KubernetesObject | None) -> int:
        graph.put(key, value)
        graph.settle()
        count = len(graph.dirty)
        graph.run()
        return count

    assert touched("x/c2", pod("x/c")) == 0, "another pod of a known identity"
    assert touched("x/d", pod("x/d")) == 1, "a new identity that no peer matches: itself"
    assert touched("x/b2", pod("x/b2", labels={"pod": "b", "more": "1"})) == 1, "a new peer: itself alone"
    graph.hold(Held(named=frozenset(graph.named)))
    assert touched("p", None) == 1, "a policy that goes: its subjects"
    assert touched("p", allow) == 1
    assert touched("x/e", pod("x/e", labels={"more": "1"})) == 1
    graph.hold(Held())
    assert touched("p", None) == 5, "nobody names the label any more: the records that showed it, and no other"


def test_keys_are_looked_through_only_when_policies_name_others(monkeypatch: pytest.MonkeyPatch) -> None:
    one, same, other = policies(
        """[{podSelector: {matchLabels: {pod-template-hash: a}}}, {podSelector: {matchLabels: {pod-template-hash: b}}},
            {podSelector: {matchLabels: {controller-revision-hash: a}}}]"""
    )
    looked_through: list[int] = []

    def looking(named: Collection[NamedKey]) -> RelevantKeys:
        looked_through.append(len(named))
        return relevant_keys(named)

    monkeypatch.setattr("services.policy.core.graph.relevant_keys", looking)
    graph = feed(Graph(), {"k": Namespace("kube-system", "u"), "x": namespace("x"), "x/a": pod("x/a"), "one": one})
    for key, value in (("two", same), ("one", same), ("three", other), ("two", None), ("one", None), ("three", None)):
        graph.put(key, value)
        graph.run()
    assert looked_through == [1, 2, 1, 0], "the first, another key, and each key that nobody names any more"
    assert graph.relevant == NO_KEYS


def test_what_a_policy_names_in_its_own_namespace_shows_in_no_other() -> None:
    objects: Objects = {"k": Namespace("kube-system", "u"), "x": namespace("x"), "y": namespace("y")}
    objects |= {name: pod(name, labels={"app": "a", "pod-template-hash": name[0]}) for name in ("x/a", "y/a")}
    graph = feed(Graph(), objects)
    before = {name: identity_and_labels(graph, objects[name]) for name in ("x/a", "y/a")}
    hidden = tuple(sorted((hidden_key("app"),)))
    assert {(labels, reported) for _, labels, reported in before.values()} == {((), hidden)}

    def with_policy(text: str) -> dict[str, tuple[int, Labels, tuple[int, ...]]]:
        graph.put("p", policies(text)[0])
        settled_with_relevant(graph)
        return {name: identity_and_labels(graph, objects[name]) for name in ("x/a", "y/a")}

    own = with_policy("[{podSelector: {matchExpressions: [{key: pod-template-hash, operator: Exists}]}}]")
    assert own["y/a"] == before["y/a"]
    assert own["x/a"][0] != before["x/a"][0]
    assert own["x/a"][1:] == ((("pod-template-hash", "x"),), hidden)
    peers = "[{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: a}}}]}]}]"
    assert with_policy(peers) == {"x/a": (before["x/a"][0], (("app", "a"),), ()), "y/a": before["y/a"]}
    everywhere = (
        "[{podSelector: {}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: a}}}]}]}]"
    )
    assert {reported[1:] for reported in with_policy(everywhere).values()} == {((("app", "a"),), ())}


def identity_and_labels(graph: Graph, one: KubernetesObject) -> tuple[int, Labels, tuple[int, ...]]:
    assert isinstance(one, Pod)
    identity = graph.roster.identity_of(one, graph.relevant)
    assert identity is not None
    record = graph.compiled[identity].record
    assert record is not None
    return identity, record.pod_labels, record.hidden_pod_keys


def test_namespace_labels_are_shown_to_whoever_selects_namespaces() -> None:
    objects: Objects = {"k": Namespace("kube-system", "u"), "x": namespace("x", team="blue"), "x/a": pod("x/a")}
    graph = feed(Graph(), objects)
    (compiled,) = graph.compiled.values()
    assert compiled.record is not None
    assert compiled.record.namespace_labels == ()
    assert len(compiled.record.hidden_namespace_keys) == 3
    selector = "{namespaceSelector: {matchLabels: {team: blue}}}"
    graph.put("p", policies(f"[{{namespace: z, podSelector: {{}}, ingress: [{{from: [{selector}]}}]}}]")[0])
    assert graph.run() == {compiled.policy.identity}
    (compiled,) = graph.compiled.values()
    assert compiled.record is not None
    assert compiled.record.namespace_labels == (("team", "blue"),)
    assert hidden_key("team") not in compiled.record.hidden_namespace_keys


def test_rules_do_not_grow_with_the_identities_that_a_selector_matches() -> None:
    """The attack: every label set of a tenant was a line for each port of whoever lets all namespaces in."""
    spec = "[{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}], ports: [{port: 80}, {port: 443}]}]}]"
    objects: Objects = {"k": Namespace("kube-system", "u"), "x": namespace("x"), "y": namespace("y")}
    objects |= {"p": policies(spec)[0], "x/a": pod("x/a")}
    graph = feed(Graph(), objects)
    subject = graph.roster.identity_of(pod("x/a"), NO_KEYS)
    assert subject is not None
    before = graph.compiled[subject]
    for count in range(3000):
        graph.put(f"y/{count}", pod(f"y/{count}", labels={"bomb": str(count)}))
    touched = graph.run()
    assert graph.compiled[subject] == before
    assert subject not in touched
    assert len(before.policy.rules) == 1


LIMITS = Limits(identities=5, record_bytes=100_000, labels=20)


def crowd(count: int, space: str = "y") -> Objects:
    return {f"{space}/{at}": pod(f"{space}/{at}", labels={"n": str(at)}) for at in range(count)}


def test_a_namespace_spends_its_own_budget_of_identities_alone() -> None:
    objects: Objects = {"k": Namespace("kube-system", "u"), "x": namespace("x"), "y": namespace("y")} | crowd(3, "x")
    graph = feed(Graph(LIMITS), objects | crowd(5))
    first = set(graph.compiled)
    assert len(first) == 8
    assert not graph.problems
    for key, value in crowd(9).items():
        graph.put(key, value)
    graph.hold(Held(recorded=first))
    graph.run()
    assert set(graph.compiled) == first, "the newest wait, whatever their numbers are"
    (problem,) = graph.problems
    assert {(about.kind, about.name) for about in problem.about} == {("Namespace", "y")} | {
        ("Pod", str(at)) for at in range(5, 9)
    }
    assert "namespace y have 9 different sets" in problem.fault
    for at in range(4):
        graph.put(f"y/{at}", None)
    graph.run()
    assert not graph.problems
    assert len(graph.compiled) == 8


@pytest.mark.parametrize(("home", "admitted"), [("x", 12), ("y", 5)])
def test_a_key_that_another_namespaces_policy_names_spends_nobodys_budget(home: str, admitted: int) -> None:
    """The attack: a peer with a namespace selector that names a label of single pods makes each an identity of its own.

    Who names it in its own namespace pays for it.
    """
    objects: Objects = {"k": Namespace("kube-system", "u"), "x": namespace("x"), "y": namespace("y")}
    objects |= {f"y/{at}": pod(f"y/{at}", labels={"app": "a", "pod-template-hash": str(at)}) for at in range(12)}
    peer = "{namespaceSelector: {}, podSelector: {matchLabels: {pod-template-hash: '3'}}}"
    spec = f"[{{namespace: {home}, podSelector: {{}}, policyTypes: [Egress], egress: [{{to: [{peer}]}}]}}]"
    graph = feed(Graph(LIMITS), objects | {"p": policies(spec)[0]})
    there = [graph.roster.identity_of(one, graph.relevant) for one in objects.values() if isinstance(one, Pod)]
    assert len(set(there)) == 12
    assert len(graph.compiled) == admitted
    assert bool(graph.problems) == (admitted < 12)


def test_without_records_the_same_ones_are_refused_by_every_copy() -> None:
    objects: Objects = {"k": Namespace("kube-system", "u"), "y": namespace("y")} | crowd(9)
    backwards = dict(reversed(list(objects.items())))
    one, other = feed(Graph(LIMITS), objects), feed(Graph(LIMITS), backwards)
    assert image(one) == image(other)
    assert len(one.compiled) == 5


def test_what_lingers_goes_before_what_runs() -> None:
    objects: Objects = {"k": Namespace("kube-system", "u"), "y": namespace("y")}
    was = feed(Graph(LIMITS), objects | crowd(5))
    records = {identity: one.record for identity, one in was.compiled.items() if one.record is not None}
    graph = feed(Graph(LIMITS), objects | {f"z{at}": pod(f"y/z{at}") for at in range(3)})
    running = set(graph.compiled)
    held = {identity: Member.from_record(record) for identity, record in records.items()}
    graph.hold(Held(lingering=held, recorded=records.keys()))
    graph.run()
    assert len(graph.compiled) == 5
    assert running < graph.compiled.keys()
    assert not graph.problems, "nobody waits"


@pytest.mark.parametrize(
    ("labels", "refused"), [({"a": "v" * 63}, False), ({f"key{at}": "" for at in range(21)}, True)]
)
def test_a_pod_with_too_many_labels_waits_and_is_reported(labels: dict[str, str], refused: bool) -> None:
    objects: Objects = {"k": Namespace("kube-system", "u"), "y": namespace("y"), "y/b": pod("y/b", labels=labels)}
    graph = feed(Graph(LIMITS), objects | crowd(2))
    assert len(graph.compiled) == (2 if refused else 3)
    reported = {about for problem in graph.problems for about in problem.about}
    assert reported == ({About("", "Pod", "y", "b", "TooManyLabels")} if refused else set())


def test_large_labels_spend_the_namespaces_bytes() -> None:
    objects: Objects = {"k": Namespace("kube-system", "u"), "x": namespace("x"), "y": namespace("y")} | crowd(1, "x")
    large = {f"{'k' * 60}{at}": "v" * 63 for at in range(18)}
    bombs = {f"y/{at}": pod(f"y/{at}", labels=large | {"n": str(at)}) for at in range(5)}
    limits = Limits(identities=5, record_bytes=8_000, labels=20)
    graph = feed(Graph(limits), objects | bombs)
    assert len(graph.compiled) == 3
    total = sum(
        len(encode(one.record)) for one in graph.compiled.values() if one.record and one.record.namespace == "y"
    )
    assert total <= 8_000
    shown = (
        f"[{{podSelector: {{matchExpressions: [{', '.join(f'{{key: {key}, operator: Exists}}' for key in large)}]}}}}]"
    )
    graph.put("p", msgspec.structs.replace(policies(shown)[0], namespace="y"))
    graph.run()
    total = sum(
        len(encode(one.record)) for one in graph.compiled.values() if one.record and one.record.namespace == "y"
    )
    assert 3_000 < total <= 8_000, "and so they do when selectors name them"


def test_a_pod_on_two_nodes_for_a_moment_has_one_identity() -> None:
    objects: Objects = {"k": Namespace("kube-system", "u"), "x": namespace("x")}
    objects |= {"n1": pod("x/a", node="n1"), "n2": pod("x/a", node="n2")}
    graph = feed(Graph(), objects)
    assert len(graph.compiled) == 1
    graph.put("n1", None)
    graph.run()
    assert len(graph.compiled) == 1
    graph.put("n2", None)
    graph.run()
    assert not graph.compiled


def test_lingering_identities_keep_their_rules_and_stay_peers() -> None:
    spec = "[{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}]}]"
    objects: Objects = {"k": Namespace("kube-system", "u"), "x": namespace("x"), "p": policies(spec)[0]}
    objects |= {name: pod(name) for name in ("x/a", "x/b")}
    graph = feed(Graph(), objects)
    identity = graph.roster.identity_of(pod("x/b"), NO_KEYS)
    assert identity is not None
    record = graph.compiled[identity].record
    assert record is not None
    before = image(graph)
    graph.put("x/b", None)
    graph.hold(Held(lingering={identity: Member.from_record(record)}))
    graph.run()
    assert image(graph) == before
    graph.hold(Held())
    graph.run()
    assert identity not in graph.compiled


def test_a_namespaces_rules_have_a_budget_of_bytes() -> None:
    """The attack: one policy of nearly a megabyte on hundreds of label sets fills ``rules`` for everybody."""
    ports = ", ".join(f"{{port: {2 * at + 1}}}" for at in range(100))
    wide, narrow = policies(
        f"""[{{namespace: y, podSelector: {{matchLabels: {{size: l}}}}, ingress: [{{ports: [{ports}]}}]}},
             {{namespace: y, podSelector: {{}}, ingress: [{{ports: [{{port: 1}}]}}]}}]"""
    )
    objects: Objects = {"k": Namespace("kube-system", "u"), "x": namespace("x"), "y": namespace("y"), "p": narrow}
    objects |= {"x/a": pod("x/a"), "q": msgspec.structs.replace(wide, namespace="x", pod_selector=Selector())}
    objects |= {f"y/{at}": pod(f"y/{at}", labels={"size": "l" if at < 8 else "s", "n": str(at)}) for at in range(12)}
    limits = Limits(rule_bytes=10_000)
    graph = feed(Graph(limits), objects)
    assert not graph.problems
    graph.put("w", wide)
    graph.run()

    def denied(at: int) -> bool:
        identity = graph.roster.identity_of(objects[f"y/{at}"], NO_KEYS)  # type: ignore[arg-type]
        policy = graph.compiled[identity or 0].policy
        return policy.rules == () and policy.egress_isolated

    cut = [at for at in range(12) if denied(at)]
    assert 0 < len(cut) < 8
    assert set(cut) < set(range(8)), "the largest"
    mine = [one for one in graph.compiled.values() if one.record and one.record.namespace == "y"]
    assert sum(len(encode(one.policy)) for one in mine if one.policy.rules) <= 10_000
    assert {about.name for problem in graph.problems for about in problem.about} == {"p0", "p1"}
    subject = graph.roster.identity_of(objects["x/a"], NO_KEYS)  # type: ignore[arg-type]
    assert graph.compiled[subject or 0].policy.rules, "another namespace is as before"
    assert image(graph) == image(feed(Graph(limits), objects | {"w": wide}))
    graph.put("w", None)
    graph.run()
    assert not graph.problems
    assert not any(denied(at) for at in range(12))


def test_of_one_that_lingers_an_untold_label_may_be_what_isolates_it() -> None:
    """A hidden label is no absent one: what might select it does isolate it, and nothing lets it through."""
    objects: Objects = {"k": Namespace("kube-system", "u"), "x": namespace("x"), "x/b": pod("x/b")}
    was = feed(Graph(), objects)
    ((identity, compiled),) = was.compiled.items()
    assert compiled.record is not None
    assert compiled.record.pod_labels == ()
    graph = feed(
        Graph(), objects | {"x/b": pod("x/c", labels={}), "p": policies("[{podSelector: {matchLabels: {pod: b}}}]")[0]}
    )
    graph.hold(Held(lingering={identity: Member.from_record(compiled.record)}))
    graph.run()
    assert graph.compiled[identity].policy.ingress_isolated


def test_two_facts_under_one_number_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither gets the other's rights, and nobody else lets either of them in."""
    monkeypatch.setattr(
        "services.policy.core.identities.identity_of",
        lambda facts, _uid: 999 if ("pod", "c") not in facts.pod_labels else 1000,
    )
    allow_all = "[{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}]"
    objects: Objects = {"k": Namespace("kube-system", "u"), "x": namespace("x"), "p": policies(allow_all)[0]}
    objects |= {name: pod(name) for name in ("x/a", "x/b", "x/c")}
    graph = feed(Graph(), objects)
    refused = graph.compiled[999].policy
    assert refused.ingress_isolated
    assert refused.egress_isolated
    assert refused.rules == ()
    assert [graph.compiled[at].record is None for at in (999, 1000)] == [True, False], "so it is nobody's peer"
    assert "share the identity" in graph.problems[0].fault
    graph.put("x/b", None)
    graph.run()
    assert not graph.problems
    assert graph.compiled[999].record is not None
    assert graph.compiled[999].policy.rules


def test_a_recreated_cluster_has_other_numbers() -> None:
    objects: Objects = {"k": Namespace("kube-system", "u"), "x": namespace("x"), "x/a": pod("x/a")}
    graph = feed(Graph(), objects)
    before = set(graph.compiled)
    graph.put("k", Namespace("kube-system", "other"))
    graph.run()
    assert len(graph.compiled) == 1
    assert not before & set(graph.compiled)
    graph.put("k", None)
    graph.run()
    assert not graph.ready
    assert not graph.compiled


def test_the_roster_forgets_what_is_gone() -> None:
    roster = Roster()
    roster.put_namespace("kube-system", Namespace("kube-system", "u"))
    roster.put_namespace("x", namespace("x"))
    roster.put_pod("a", pod("x/a"))
    assert len(roster.refresh().appeared) == 1
    roster.put_namespace("x", namespace("x", tier="gold"))
    turnover = roster.refresh()
    assert (len(turnover.appeared), len(turnover.gone)) == (1, 1)
    roster.put_namespace("x", None)
    assert len(roster.refresh().gone) == 1
    assert not roster.members
    assert not roster.in_use()


@pytest.mark.parametrize("seed", range(150))
def test_new_rules_on_a_node_with_the_old_partition_never_allow_what_the_new_policies_do_not(seed: int) -> None:
    """A node goes on with its partition until all shards are there: meanwhile nothing opens, and what stays works."""
    before, other = seeded(seed).world(), seeded(seed + 5000).world()
    after = World(before.namespaces, before.nodes, before.pods, before.policies[1:] + other.policies[:2])
    old = feed(Graph(), keyed(before))
    graph = Graph()
    for key, value in keyed(after).items():
        graph.put(key, value)
    graph.run()
    held = {
        name: (CidrPartition(Revision("e", 1), own.prefixes, name, own.digest),)
        for name, own in old.partitions.items()
        if name not in graph.partitions or own.digest != graph.partitions[name].digest
    }
    graph.hold(Held(relevants=frozenset({graph.relevant}), partitions=held))
    graph.run()
    slow, quick = kernel_of(graph, after), kernel_of(graph, after)
    slow.cidrs = kernel_of(old, before).cidrs
    stays = {rule for one in before.policies for rule in (one.ingress, one.egress)}
    unchanged = all(one.ingress in stays and one.egress in stays for one in after.policies)
    for probe in probes(after, seed, 200):
        assert quick.allows(*probe) or not slow.allows(*probe), f"opened: {probe}"
        if unchanged:
            assert quick.allows(*probe) == slow.allows(*probe), f"interrupted: {probe}"
