"""Subjects and keys: who speaks is known by the subject, and no subject is read as another's."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto import subjects
from proto.codec import encode_segment
from proto.events import EVENTS_BY_SUBJECT
from proto.slots import SLOTS
from proto.subjects import (
    BUCKETS,
    ENDPOINTS,
    EVENTS,
    FINDING,
    FLOWS,
    OBJECT_FAULT,
    ROLES,
    discovery_inbox,
    event_subject,
    flow_subject,
    heard_subject,
    node_of,
    object_fault_subject,
    of_node,
    role_of_user,
    speaker_of,
)

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
EACH_NODE = [role.name for role in ROLES if role.per_node and role.publishes]
ONCE = [role.name for role in ROLES if not role.per_node and role.publishes]


@given(NAMES)
def test_a_node_is_reported_from_every_subject_that_it_speaks_on(node: str) -> None:
    segment = encode_segment(node)
    for service in EACH_NODE:
        assert node_of(heard_subject(service, "fault", segment)) == segment
        assert node_of(object_fault_subject(service, segment)) == segment
        assert speaker_of(object_fault_subject(service, segment)) == (service, segment)
        assert speaker_of(heard_subject(service, FINDING, segment), FINDING) == (service, segment)
        assert speaker_of(heard_subject(service, FINDING, segment)) is None
    for verdict in ("dropped", "forwarded"):
        assert node_of(flow_subject(segment, verdict)) == segment


@pytest.mark.parametrize("service", ONCE)
def test_a_service_that_is_of_no_node_names_none(service: str) -> None:
    assert heard_subject(service, "fault") == event_subject(service, "fault")
    assert node_of(heard_subject(service, "fault")) is None
    assert speaker_of(object_fault_subject(service)) == (service, "")


@pytest.mark.parametrize(
    "subject",
    [
        "",
        "airmesh",
        EVENTS,
        f"{EVENTS}.",
        f"{EVENTS}.dataplane",
        f"{EVENTS}.dataplane.fault",
        f"{EVENTS}.dataplane.fault.n1.n2",
        f"{FLOWS}.n1",
        f"{FLOWS}.n1.dropped.more",
        f"x{EVENTS}.dataplane.fault.n1",
        "airmesh.v2.events.dataplane.fault.n1",
        "$JS.API.STREAM.INFO.x",
    ],
)
def test_other_subjects_are_of_no_node(subject: str) -> None:
    assert node_of(subject) is None


@pytest.mark.parametrize(
    "subject",
    [
        object_fault_subject("dataplane"),  # granted to no node as it is
        object_fault_subject("policy", "n1"),
        object_fault_subject("cli"),
        object_fault_subject("nobody"),
        object_fault_subject("dataplane", "n1.n2"),
        f"{EVENTS}.dataplane.fault.n1",
        f"{EVENTS}.dataplane.{OBJECT_FAULT}x.n1",
        "",
    ],
)
def test_who_speaks_of_an_object_is_known_or_it_is_nobody(subject: str) -> None:
    assert speaker_of(subject) is None


@pytest.mark.parametrize("service", [role.name for role in ROLES])
def test_an_object_fault_is_no_common_event(service: str) -> None:
    with pytest.raises(ValueError, match="object_fault_subject"):
        event_subject(service, OBJECT_FAULT)


def test_every_event_of_the_contract_is_granted_to_who_reports_it() -> None:
    """On the subject as it is heard: with the node behind it where the server puts it there."""
    for subject in EVENTS_BY_SUBJECT:
        service = "dataplane" if subject.startswith(FLOWS) else subject.split(".")[3]
        (role,) = (role for role in ROLES if role.name == service)
        granted = [one.replace("{node}", "*") for one in role.publishes]
        heard = [f"{one}.*" if one.endswith(".*") and role.per_node else one for one in granted]
        assert any(covers(one, subject) for one in (*granted, *heard)), subject


def covers(pattern: str, subject: str) -> bool:
    wanted, given_ = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        wanted, given_ = wanted[:-1], given_[: len(wanted) - 1]
    return len(wanted) == len(given_) and all(one in ("*", other) for one, other in zip(wanted, given_, strict=True))


@given(NAMES)
def test_a_users_role_and_node_come_back(node: str) -> None:
    segment = encode_segment(node)
    for role in ROLES:
        name = f"{role.name}-{segment}" if role.per_node else role.name
        assert role_of_user(name) == (role, segment if role.per_node else "")


@pytest.mark.parametrize(
    "user", ["", "Cluster", "cluster ", "cluster-n1", "dataplane", "routing", "operator", "-n1", "cli-"]
)
def test_a_user_of_no_role_is_refused(user: str) -> None:
    with pytest.raises(ValueError, match="no role has a user"):
        role_of_user(user)


def test_no_name_of_a_role_or_bucket_is_the_beginning_of_anothers() -> None:
    """A user is known by the beginning of its name, a stream by its bucket's."""
    for names in ([role.name for role in ROLES], [bucket.name for bucket in BUCKETS]):
        assert len(set(names)) == len(names)
        assert [
            (one, other) for one, other in product(names, names) if one != other and other.startswith(f"{one}-")
        ] == []


def test_every_grant_is_of_a_bucket_that_is_made() -> None:
    granted = {grant.bucket for role in ROLES for grant in (*role.writes, *role.reads)}
    assert granted == set(BUCKETS)
    assert [role.name for role in ROLES if role.makes_buckets] == ["cluster"]


def test_each_request_has_one_role_that_answers_it() -> None:
    asked = {subject.replace("{node}", "*") for role in ROLES for subject in role.requests} - {subjects.DISCOVERY}
    served = [subject for role in ROLES for subject in role.serves]
    assert len(served) == len(set(served))
    assert asked == set(served)


def test_a_node_writes_and_asks_only_under_its_own_name() -> None:
    """Whatever a role of each node may write, ask or tell has that node in it, or the server puts it there."""
    for role in ROLES:
        if not role.per_node:
            continue
        for grant in role.writes:
            assert grant.exact, f"{role.name} could write any number of keys of {grant.bucket.name}"
            assert all("{node}" in prefix for prefix in grant.prefixes)
        assert all("{node}" in subject for subject in role.requests)
        assert role.serves == role.listens == ()
        for subject in role.publishes:
            assert "{node}" in subject or subject.endswith(f".{role.name}.*")


def test_what_only_reads_cannot_write_or_answer() -> None:
    (cli,) = (role for role in ROLES if role.name == "cli")
    assert (cli.writes, cli.serves, cli.publishes, cli.makes_buckets) == ((), (), (), False)


def test_slots_are_renamed_to_as_many_keys_as_there_are() -> None:
    for bucket in BUCKETS:
        if bucket is not ENDPOINTS:
            assert bucket.renamed is None
    assert ENDPOINTS.renamed == (
        "$KV.endpoints_v1.*.slot.*",
        f"$KV.endpoints_v1.{{{{wildcard(1)}}}}.slot.{{{{partition({SLOTS},2)}}}}",
    )
    assert all(bucket.max_value <= bucket.max_bytes for bucket in BUCKETS)


def test_spelling() -> None:
    assert of_node(subjects.IPAM_CLAIM, "n=2E1") == "airmesh.v1.ipam.claim.n=2E1"
    assert heard_subject("dataplane", "endpoint-up") == "airmesh.v1.events.dataplane.endpoint-up.*"
    assert object_fault_subject("ipam") == "airmesh.v1.events.ipam.object-fault"
    assert flow_subject("n1", "dropped") == "airmesh.v1.flows.n1.dropped"
    assert discovery_inbox("cli") == "_INBOX.cli.srv"
    assert ENDPOINTS.on_server == "endpoints_v1"
