"""Identities: the same facts give the same number for ever, and no two facts run into each other."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kit.identity import Computed, digest_of, identity_of, stands_for
from proto.identity import FIRST_COMPUTED, UNSTABLE_LABELS, IdentitySet, NamedPort, RelevantKeys
from proto.objects import Namespace, Pod

text = st.text("ab=/", max_size=3)
pairs = st.lists(st.tuples(text, text), max_size=3).map(lambda found: tuple(sorted(found)))
ports = st.lists(st.builds(NamedPort, text, st.sampled_from((6, 17)), st.integers(1, 99)), max_size=2).map(
    lambda found: tuple(sorted(found))
)
facts = st.builds(IdentitySet, text, pairs, pairs, text, ports)


def test_golden_number() -> None:
    """Every replica, release and rebuild must compute this: never change it."""
    shop = IdentitySet(
        namespace="shop",
        namespace_labels=(("kubernetes.io/metadata.name", "shop"),),
        pod_labels=(("app", "web"),),
        service_account="default",
        named_ports=(NamedPort("http", 6, 8080),),
    )
    assert f"{identity_of(shop, 'b5d1c2f0-0000-4000-8000-000000000001'):016x}" == "01c12eb8f2d40c91"


@given(facts, facts)
def test_equal_numbers_mean_equal_facts(one: IdentitySet, other: IdentitySet) -> None:
    assert (identity_of(one, "uid") == identity_of(other, "uid")) == (one == other)


@given(facts)
def test_never_a_reserved_number_and_another_in_another_cluster(one: IdentitySet) -> None:
    assert FIRST_COMPUTED <= identity_of(one, "uid") < 2**64
    assert identity_of(one, "uid") != identity_of(one, "another")


@given(facts, facts)
def test_equal_digests_mean_equal_facts(one: IdentitySet, other: IdentitySet) -> None:
    assert (digest_of(one) == digest_of(other)) == (one == other)
    assert len(digest_of(one)) == 32


OF_JOBS = ("job-name", "batch.kubernetes.io/job-name", "batch.kubernetes.io/job-completion-index", "controller-uid")
OF_NODES = (
    "kubernetes.io/hostname",
    "topology.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "node.kubernetes.io/instance-type",
)


def test_labels_that_differ_from_pod_to_pod_do_not_count_unless_a_selector_names_them() -> None:
    namespace = Namespace(name="shop", uid="u")
    labels = tuple(sorted((("app", "web"), *((key, "x") for key in (*UNSTABLE_LABELS, *OF_JOBS, *OF_NODES)))))
    pod = Pod(namespace="shop", name="web-1", uid="p", node="n1", labels=tuple(dict.fromkeys(labels)))
    assert stands_for(pod, namespace).pod_labels == (("app", "web"),)
    for key in ("pod-template-hash", *OF_JOBS, *OF_NODES):
        named = stands_for(pod, namespace, {key})
        assert named.pod_labels == tuple(sorted((("app", "web"), (key, "x"))))


def test_a_pod_keeps_its_identity_wherever_it_starts_again() -> None:
    """Kubernetes copies labels of the node to its pods."""
    namespace = Namespace(name="shop", uid="u")

    def on(node: str) -> int:
        labels = (("app", "db"), ("kubernetes.io/hostname", node), ("topology.kubernetes.io/zone", f"zone-of-{node}"))
        return identity_of(stands_for(Pod("shop", "db-0", node, node, labels=labels), namespace), "uid")

    assert on("n1") == on("n2")


def test_relevant_keys_of_a_namespace() -> None:
    relevant = RelevantKeys(keys=("job-name",), by_namespace=(("ci", ("controller-uid", "job-name")), ("shop", ())))
    assert relevant.of("elsewhere") == {"job-name"}
    assert relevant.of("ci") == {"controller-uid", "job-name"}
    assert relevant.of("shop") == frozenset()


@given(st.lists(st.tuples(st.sampled_from("ab"), pairs, pairs, st.frozensets(text), st.sampled_from("xy"))))
def test_what_is_remembered_is_what_would_be_computed(
    asked: list[tuple[str, tuple[tuple[str, str], ...], tuple[tuple[str, str], ...], frozenset[str], str]],
) -> None:
    computed = Computed()
    pods: dict[str, Pod] = {}
    for name, labels, of_namespace, relevant, uid in asked:
        before = pods.get(name)
        pod = before if before and before.labels == labels else Pod("shop", name, f"u-{name}", "n1", labels=labels)
        pods[name] = pod
        shop = Namespace(name="shop", uid="u", labels=of_namespace)
        wanted = identity_of(stands_for(pod, shop, relevant), uid)
        assert [computed.identity(pod, shop, relevant, uid) for _ in range(2)] == [wanted] * 2
    assert len(computed) == len(pods)
    for name in pods:
        computed.forget("shop", name)
    assert not len(computed)
