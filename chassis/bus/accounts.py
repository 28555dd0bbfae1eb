"""NATS accounts and the subjects each may reach, derived from ``proto.subjects.ROLES``.

A server checks what a user publishes, never the *reply* subject of a request: an answer goes wherever the reply points,
with nobody's rights. So a user alone in its account is the only confinement that holds: what an account imports is all
that can leave it, an answer included, whatever its user's permissions forget.

- ``state`` holds the JetStream streams and no user. A role sees of it what the table grants, spelled
  ``airmesh.v1.jetstream.…`` (``$JS.API.…`` means an account's own JetStream, which the others have none of).
- Each role, and each node of a role per node, has one account with one user.
- A request goes to the account of the role that serves it, an event to the account of each role that listens. Both
  arrive under the sender's subject: what a node imports names that node. Where an event's subject does not, the server
  puts the node at its end.
- A role that asks ``$SRV.>`` is heard by every other but a shared one; each answers through an import of its own, which
  puts the name of its user into the subject (:func:`proto.subjects.discovery_inbox`), so that nobody answers in
  another's name.

The imports are also the users' permissions to publish: a client is refused at once, with a reason.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from chassis.secret import Secret
from proto.codec import encode_segment
from proto.subjects import BUCKETS, DISCOVERY, INBOX, JETSTREAM, SPANS, Grant, Role, discovery_inbox

STATE = "state"
"""Account of the streams."""
SERVICE_REPLY = "_R_"
"""First token of the reply subject that a server gives a request which comes from another account."""
_API = "$JS.API"

Kind = Literal["service", "stream"]


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """One user of the bus. ``seed`` goes into its own file (0600); ``public`` into the server's configuration."""

    name: str
    role: Role
    node: str
    """Node name; empty for a role that is not per node."""
    seed: Secret
    public: str


@dataclass(frozen=True, slots=True, order=True)
class Export:
    """Subjects that other accounts may ask (service) or hear (stream)."""

    subject: str
    kind: Kind = "service"
    many: bool = False
    """A request may have more than one answer."""


@dataclass(frozen=True, slots=True, order=True)
class Import:
    """Subjects of another account; ``local`` is how this account spells them, with the same wildcards."""

    account: str
    subject: str
    local: str
    kind: Kind = "service"


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """An account and its one user; ``state`` has none."""

    name: str
    exports: tuple[Export, ...] = ()
    imports: tuple[Import, ...] = ()
    user: User | None = None
    publish: tuple[str, ...] = field(default=())
    """What the user may publish."""
    subscribe: tuple[str, ...] = field(default=())


def make_accounts(users: Iterable[User]) -> tuple[Account, ...]:
    """Every account that ``users`` need, the one of the streams first."""
    users = tuple(users)
    return (Account(name=STATE, exports=_STATE_EXPORTS), *(_account(user, users) for user in users))


def meet(one: str, other: str) -> str:
    """Subject that names what both name (wildcards ``*`` and ``>``); empty when they have nothing in common."""
    met: list[str] = []
    left, right = one.split("."), other.split(".")
    for at in range(max(len(left), len(right))):
        first, second = left[at : at + 1], right[at : at + 1]
        if first == [">"] and second:
            return ".".join([*met, *right[at:]])
        if second == [">"] and first:
            return ".".join([*met, *left[at:]])
        if not first or not second or (first != second and "*" not in (first[0], second[0])):
            return ""
        met += second if first == ["*"] else first
    return ".".join(met)


def _least(imports: Iterable[Import]) -> list[Import]:
    """Without those that another one covers: a message would cross twice."""
    groups: dict[tuple[str, str], set[Import]] = {}
    for one in imports:
        groups.setdefault((one.account, ".".join(one.local.split(".")[:4])), set()).add(one)
    return [
        one
        for group in groups.values()
        for one in group
        if not any(other != one and meet(other.local, one.local) == one.local for other in group)
    ]


_STATE_EXPORTS = (
    Export("$KV.>"),
    Export(f"{_API}.STREAM.INFO.*"),
    Export(f"{_API}.STREAM.CREATE.*"),
    Export(f"{_API}.STREAM.UPDATE.*"),
    Export(f"{_API}.STREAM.MSG.GET.*"),
    Export(f"{_API}.DIRECT.GET.*.>"),
    Export(f"{_API}.CONSUMER.CREATE.*.>"),
    Export(f"{_API}.CONSUMER.DELETE.*.*"),
    Export(f"{_API}.CONSUMER.MSG.NEXT.*.*", many=True),
)


def _account(user: User, users: tuple[User, ...]) -> Account:
    role = user.role
    asks = DISCOVERY in role.requests
    exports = [Export(subject) for subject in (*role.serves, *role.listens)]
    if asks:
        exports += [Export(DISCOVERY, "stream"), Export(f"{discovery_inbox(user.name)}.>")]
    imports = [*_of_state(user), *(one for other in users if other is not user for one in _between(user, other))]
    services = [one.local for one in imports if one.kind == "service"]
    return Account(
        name=user.name,
        exports=tuple(sorted(set(exports))),
        imports=tuple(sorted(_least(imports))),
        user=user,
        publish=tuple(sorted({*services, *([f"{SERVICE_REPLY}.>"] if role.serves else []), *_own(user)})),
        subscribe=tuple(sorted({f"{INBOX}.{user.name}.>", *role.serves, *role.listens, *_discovered(user)})),
    )


def _own(user: User) -> list[str]:
    """What the user may publish in its own account: discovery, and events although nobody may listen to them."""
    asked = [DISCOVERY] if DISCOVERY in user.role.requests else []
    return [*asked, *(_spelled(subject, user) for subject in user.role.publishes)]


def _discovered(user: User) -> list[str]:
    if DISCOVERY in user.role.requests or user.role.shared:
        return []
    name = user.role.name
    verbs = ("PING", "INFO", "STATS")
    micro = (f"$SRV.{verb}{of_whom}" for verb in verbs for of_whom in ("", f".{name}", f".{name}.*"))
    return [*micro, SPANS, *user.role.discovered]


def _spelled(subject: str, user: User) -> str:
    return subject.replace("{node}", encode_segment(user.node))


def _between(user: User, other: User) -> list[Import]:
    """What ``user``'s account imports from ``other``'s."""
    role, account = user.role, other.name
    asked = [(_spelled(subject, user), served) for subject in role.requests for served in other.role.serves]
    found = [Import(account, met, met) for met in (meet(*pair) for pair in asked) if met]
    events: dict[str, Import] = {}
    for subject in sorted(role.publishes, key=lambda subject: "{node}" not in subject):
        tail = f".{encode_segment(user.node)}" if role.per_node and "{node}" not in subject else ""
        for heard in other.role.listens:
            met = meet(_spelled(subject, user) + tail, heard)
            if met:
                events.setdefault(met, Import(account, met, met.removesuffix(tail)))
    found += events.values()
    if DISCOVERY in other.role.requests and DISCOVERY not in role.requests and not role.shared:
        inbox = discovery_inbox(account)
        found += [
            Import(account, DISCOVERY, DISCOVERY, "stream"),
            Import(account, f"{inbox}.{user.name}.*", f"{inbox}.*"),
        ]
    return found


def _of_state(user: User) -> list[Import]:
    role = user.role
    subjects: list[str] = []
    for grant in role.writes:
        subjects += _write(grant, user)
    for grant in role.reads:
        subjects += _read(grant, user)
    if role.makes_buckets:
        for bucket in BUCKETS:
            stream = bucket.stream
            subjects += [f"{_API}.STREAM.{verb}.{stream}" for verb in ("CREATE", "INFO", "UPDATE")]
    return [Import(STATE, subject, _local(subject)) for subject in dict.fromkeys(subjects)]


def _local(subject: str) -> str:
    return JETSTREAM + subject.removeprefix(_API) if subject.startswith(_API) else subject


def _keys(grant: Grant, user: User) -> list[str]:
    """Subjects of the keys that a grant covers."""
    found: list[str] = []
    for prefix in grant.prefixes:
        key = _spelled(prefix, user)
        found += [key] if key == ">" or grant.exact else [key, f"{key}.>"]
    return [grant.bucket.subject(key) for key in found]


def _write(grant: Grant, user: User) -> list[str]:
    """A writer may also read its own keys, for compare-and-set."""
    subjects = _keys(grant, user)
    return [*subjects, *(f"{_API}.DIRECT.GET.{grant.bucket.stream}.{subject}" for subject in subjects)]


def _read(grant: Grant, user: User) -> list[str]:
    stream = grant.bucket.stream
    subjects = [
        f"{_API}.STREAM.INFO.{stream}",
        f"{_API}.CONSUMER.DELETE.{stream}.*",
        f"{_API}.CONSUMER.MSG.NEXT.{stream}.*",
    ]
    if grant.prefixes == (">",):
        return [*subjects, f"{_API}.STREAM.MSG.GET.{stream}", f"{_API}.CONSUMER.CREATE.{stream}.>"]
    keys = _keys(grant, user)
    subjects += [f"{_API}.DIRECT.GET.{stream}.{key}" for key in keys]
    return [*subjects, *(f"{_API}.CONSUMER.CREATE.{stream}.*.{key}" for key in keys)]
