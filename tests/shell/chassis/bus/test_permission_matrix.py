"""Every user against every subject and bucket, by a real server's own word, as the golden page says it.

The page is `tests/golden/bus_permissions.txt`: a line for each subject that anybody may use or try, with the users who
may. It is compared with what servers refuse, never with the table of roles: who changes that table sees in review what
everybody may from then on. Written again by `--update-golden`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from proto.subjects import BUCKETS, DISCOVERY, EVENTS, FLOWS, JETSTREAM, ROLES, SPANS
from tests.natsd import NatsServer
from tests.shell.chassis.bus.test_allow_lists import NODE, OTHER, attempts, name_of, refusals

PAGE = Path(__file__).parents[3] / "golden" / "bus_permissions.txt"
HEAD = """# What each user of the bus may publish to (publish) and hear (listen), as a real server refuses it.
# Node users are those of n1; n2 is another node. Written by test_permission_matrix.py with --update-golden.
"""
ROLE = {role.name: role for role in ROLES}
ABOUT_ITSELF = re.compile(rf"(^|[.=]){NODE}($|\.)")


def published() -> list[str]:
    """All that any role may publish to, and all that its tests of the allow-lists try."""
    return sorted({attempt.subject for role in ROLES for attempt in attempts(role)})


def listened() -> list[str]:
    found = {
        ">",
        "$KV.>",
        "$JS.>",
        "$SYS.>",
        "_INBOX.>",
        "_R_.>",
        f"{EVENTS}.>",
        f"{FLOWS}.>",
        DISCOVERY,
        SPANS,
        "$SRV.PING",
    }
    for role in ROLES:
        for node in (NODE, OTHER):
            name = f"{role.name}-{node}" if role.per_node else role.name
            found |= {f"_INBOX.{name}.>", f"$SRV.PING.{role.name}", f"{EVENTS}.{role.name}.fault"}
        found |= {*role.serves, *role.discovered}
    found |= {f"$KV.{bucket.on_server}.>" for bucket in BUCKETS}
    return sorted(found)


def written(allowed: dict[str, dict[str, list[str]]]) -> str:
    rows = ((f"{verb} {subject}", users) for verb, found in allowed.items() for subject, users in found.items())
    return HEAD + "".join(f"{head}: {' '.join(users) or '-'}\n" for head, users in rows)


def page() -> dict[str, dict[str, set[str]]]:
    """Verb, subject, users that may."""
    found: dict[str, dict[str, set[str]]] = {"publish": {}, "listen": {}}
    for row in PAGE.read_text().splitlines():
        if not row.startswith("#"):
            head, _, users = row.rpartition(": ")
            verb, _, subject = head.partition(" ")
            found[verb][subject] = set(users.split()) - {"-"}
    return found


@pytest.fixture(params=["file", "signed"])
def mesh(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path / "nats", (NODE, OTHER), signed=request.param == "signed")
    server.start()
    yield server
    server.close()


async def test_every_user_may_what_the_page_says_and_nothing_else(mesh: NatsServer, update_golden: bool) -> None:
    subjects = {"publish": published(), "listen": listened()}
    allowed: dict[str, dict[str, list[str]]] = {verb: {one: [] for one in all_} for verb, all_ in subjects.items()}
    for role in ROLES:
        for verb, word in (("publish", "publish"), ("listen", "subscribe")):
            refused = await refusals(mesh, role, subjects[verb], word)
            for subject in subjects[verb]:
                if subject.lower() not in refused:
                    allowed[verb][subject].append(name_of(role))
    if update_golden:
        PAGE.write_text(written(allowed))
    assert written(allowed) == PAGE.read_text(), "see what changed, then write the page again with --update-golden"
    assert len(ROLES) * sum(map(len, subjects.values())) > 3000


@pytest.mark.parametrize("user", [f"dataplane-{NODE}", f"routing-{NODE}"])
def test_a_node_that_was_taken_over_lies_about_itself_alone(user: str) -> None:
    """Of all that it may publish to, what is stored, asked or said bears its name, which the server put there."""
    service = user.removesuffix(f"-{NODE}")
    allowed = {subject for subject, users in page()["publish"].items() if user in users}
    reads = {subject for subject in allowed if subject.startswith(f"{JETSTREAM}.")}
    harmless = re.compile(r"STREAM\.(INFO|MSG\.GET)|DIRECT\.GET|CONSUMER\.(CREATE|DELETE|MSG\.NEXT)")
    assert {subject for subject in reads if not harmless.match(subject, len(JETSTREAM) + 1)} == set()
    spoken = {subject for subject in allowed - reads if not subject.startswith(f"{EVENTS}.{service}.")}
    assert {subject for subject in spoken if not ABOUT_ITSELF.search(subject)} == set()
    assert len(spoken) > 1
    heard = {subject for subject, users in page()["listen"].items() if user in users}
    asked = {"$SRV.PING", f"$SRV.PING.{service}", SPANS, *ROLE[service].discovered}
    assert heard == {f"_INBOX.{user}.>", *asked}


def test_nobody_rewrites_the_streams_but_who_makes_them() -> None:
    for subject, users in page()["publish"].items():
        if any(verb in subject for verb in (".STREAM.DELETE.", ".PURGE.", ".RESTORE.", ".SNAPSHOT.", ".MSG.DELETE.")):
            assert users == set(), subject
        if ".STREAM.CREATE." in subject or ".STREAM.UPDATE." in subject:
            assert users == {"cluster"}, subject
