"""Every bucket of the bus is lost while the mesh runs, or a copy of `policy` wakes from a long sleep: all state comes
back from the API, the journals and the kernel; no address moves, no verdict widens at any moment."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from ipaddress import ip_address
from typing import Any

import nats.errors
import pytest

from tests.drills.store import Contents, Janitor, janitor, watching
from tests.drills.traffic import Traffic, asleep, bus_down, copies, stores, street, well
from tests.labkit import Lab

pytestmark = [pytest.mark.lab, pytest.mark.privileged, pytest.mark.uncontended]

REBUILT_WITHIN = 35.0
STATE = ("blocks", "owners", "claims", "endpoints", "identities", "rules", "routes")
BY_IDENTITY = ("identities", "rules")


@pytest.fixture(scope="module")
def traffic(lab: Lab) -> Iterator[Traffic]:
    with street(lab) as made:
        yield made


@pytest.fixture(scope="module")
def store(lab: Lab) -> Iterator[Janitor]:
    with janitor(lab) as made:
        yield made


def essence(bucket: str, contents: Contents) -> dict[str, Any]:
    """What of a bucket must be the same after it was made anew: everything but revisions, nonces and markers."""
    parts = {
        "blocks": ("cidr", "node", "node_uid", "pool"),
        "owners": ("address",),
        "claims": ("owner", "node", "pod_uid"),
        "endpoints": ("node", "address", "pod_uid", "identity", "mac"),
        "identities": ("stands_for",),
        "rules": ("ingress_isolated", "egress_isolated", "rules"),
        "routes": ("underlay", "prefixes"),
    }[bucket]
    return {
        key: {part: held.body.get(part) for part in parts} for key, held in contents.items() if not key.startswith("_")
    }


State = dict[str, dict[str, Any]]


def state(store: Janitor) -> State:
    """All that the bus knows."""
    return {bucket: essence(bucket, contents) for bucket, contents in store.read(*STATE).items()}


def lasting(before: State) -> State:
    """All of it that must come back: what pods have. Identities and kept addresses of pods that are gone, the bus alone
    keeps for a while."""
    alive = {f"{one['identity']:016x}" for one in before["endpoints"].values()}
    claims = {key: one for key, one in before["claims"].items() if one["pod_uid"]}
    held = [ip_address(bytes.fromhex(key)) for key in claims]
    return {
        **before,
        **{bucket: {key: before[bucket][key] for key in alive & before[bucket].keys()} for bucket in BY_IDENTITY},
        "claims": claims,
        "owners": {key: one for key, one in before["owners"].items() if ip_address(one["address"]) in held},
    }


def at_rest(lab: Lab) -> None:
    """Nothing of an earlier drill is still going: what is there now is there until this drill takes it away."""

    def going() -> bool:
        return any(one["metadata"].get("deletionTimestamp") for one in lab.get("namespaces")["items"])

    lab.until("namespaces of earlier drills are gone", lambda: not going(), 90)
    well(lab)


def without(node: str, wanted: State, *, answered_for: bool) -> State:
    """What can be there while the agent of a node is silent: not its endpoints; not its blocks either unless its Node,
    which is dead, answers for it. Till then nobody may tell routes."""
    if not answered_for:
        wanted = {**wanted, "routes": {}}
        wanted["blocks"] = {key: one for key, one in wanted["blocks"].items() if one["node"] != node}
    return {**wanted, "endpoints": {key: one for key, one in wanted["endpoints"].items() if one["node"] != node}}


def back(store: Janitor, wanted: State) -> float:
    """Wait until all that is wanted is there, as it was; seconds it took."""
    began = time.monotonic()
    while True:
        now: State = {bucket: {} for bucket in wanted}
        with suppress(nats.errors.Error, OSError):  # a server that is not up yet holds nothing
            now = state(store)
        missing = difference(wanted, now)
        waited = time.monotonic() - began
        if not missing:
            return waited
        assert waited < REBUILT_WITHIN, f"after {waited:.0f} s (was, is): {missing}"
        time.sleep(0.2)


def difference(wanted: State, now: State) -> dict[str, Any]:
    """What is wanted and is not so, as (wanted, found)."""
    odd = {
        bucket: {key: (one, now[bucket].get(key)) for key, one in held.items() if one != now[bucket].get(key)}
        for bucket, held in wanted.items()
    }
    return {bucket: keys for bucket, keys in odd.items() if keys}


def test_every_bucket_is_deleted_under_the_running_mesh(lab: Lab, traffic: Traffic, store: Janitor) -> None:
    at_rest(lab)
    before = lasting(state(store))
    assert all(before[bucket] for bucket in STATE), {bucket: len(held) for bucket, held in before.items()}
    traffic.unbroken()
    deleted = store.delete_all()
    assert {f"KV_{bucket}_v1" for bucket in STATE} < set(deleted)
    seconds = back(store, before)
    well(lab, max(1.0, REBUILT_WITHIN - seconds))
    traffic.unbroken()
    traffic.open()
    traffic.shut()
    traffic.unbroken()
    assert state(store)["blocks"] == before["blocks"]


def _is_ready(lab: Lab, node: str) -> bool:
    conditions = lab.get("node", node)["status"]["conditions"]
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


@pytest.mark.parametrize("dead", [False, pytest.param(True, marks=[pytest.mark.slow, pytest.mark.timeout(300)])])
def test_the_store_is_lost_while_a_node_and_a_copy_of_policy_are_silent(
    lab: Lab, traffic: Traffic, store: Janitor, dead: bool
) -> None:
    at_rest(lab)
    before = lasting(state(store))
    traffic.unbroken()
    silent_ones = ["dataplane-n3", copies(lab, "policy")[0], *(["kubelet-n3"] if dead else [])]
    with ExitStack() as silent:
        silent.enter_context(asleep(lab, *silent_ones))
        lab.until("Kubernetes gives the node up", lambda: not (dead and _is_ready(lab, "n3")), 90)
        with bus_down(lab):
            for folder in stores(lab):
                shutil.rmtree(folder)
        back(store, without("n3", before, answered_for=dead))
        traffic.open()  # the policy service works, by its other copy
        traffic.shut()
        traffic.unbroken()
        taken = {key: one for key, one in state(store)["blocks"].items() if one != before["blocks"].get(key)}
        assert not taken, "blocks changed hands while a node could not speak"
        with watching(store, "rules") as rules:
            silent.close()  # both wake with what they knew
            back(store, before)
            well(lab)
    assert rules.writes
    assert rewound(rules.writes) == []
    traffic.unbroken()


def rewound(writes: list[tuple[str, Any]]) -> list[str]:
    """Writes of an older revision over a newer one of the same epoch, or of an epoch that was left behind."""
    last: dict[str, tuple[str, int]] = {}
    left: set[str] = set()
    found = []
    for key, held in writes:
        revision = held.body.get("revision") if isinstance(held.body, dict) else None
        if not revision:
            continue
        epoch, sequence = revision["epoch"], revision["sequence"]
        was = last.get(key)
        if was and was[0] != epoch:
            left.add(was[0])
        if epoch in left or (was and was[0] == epoch and sequence < was[1]):
            found.append(f"{key}: {was} then {(epoch, sequence)}")
        last[key] = epoch, sequence
    return found


@pytest.mark.parametrize("seconds", [8, pytest.param(60, marks=pytest.mark.slow)])
def test_a_slow_copy_of_policy_overwrites_nothing_newer(
    lab: Lab, traffic: Traffic, store: Janitor, seconds: float
) -> None:
    well(lab)
    leases = store.read("leases")["leases"]
    holders = {held.body["holder"] for key, held in leases.items() if key.startswith("policy.")}
    with watching(store, "rules") as rules:
        traffic.open()
        with asleep(lab, holders.pop()):
            began = time.monotonic()
            traffic.shut()  # once its lease has run out
            time.sleep(max(0.0, seconds - (time.monotonic() - began)))
            traffic.unbroken()
        traffic.guest.report()
        well(lab)
        time.sleep(1)
        assert not traffic.guest.report()["breaches"], "what was taken back is allowed again"
    traffic.unbroken()
    assert len(rules.writes) > 4
    assert rewound(rules.writes) == []
