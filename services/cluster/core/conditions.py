"""Status conditions of Nodes, Pods and Services that say what agents' standing checks find of them.

One condition for each object and code, joined from all who tell of it: type ``airmesh.io/<code in CamelCase>``, status
``True`` while some agent finds it, and no condition else. What was heard is soft state: it ends when its agent says so,
or when it was not told again for twice the time that the message itself gives. Of a condition that the API shows and
nobody here has heard of, nothing is known until agents were listened to for :data:`SETTLES`: it stays till then.

A speaker is told from the subject, never from the message, and has a rate and a number of findings; a node's agent is
heard of its own Node, its own Pods, and of Services. Pure: time is an argument, in seconds.

Source: Kubernetes' API conventions (typical status properties); meta/v1 Condition, core/v1 PodCondition, NodeCondition.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from proto.events import FindingEvent
from proto.findings import MAX_FINDINGS, Finding, object_of, reason_of, remedy_of
from proto.objects import KIND_OF, KubernetesObject, Node, Pod, Service
from services.cluster.core.allowances import Allowances, Speaker
from services.cluster.core.object_faults import MAX_FAULT, MAX_REMEDY, named, plain
from services.cluster.core.parse import NAMES
from services.cluster.core.reports import rfc3339
from services.cluster.core.shapes import Shape

PREFIX = "airmesh.io/"
"""Begins the types that are ours."""
KINDS: tuple[type[KubernetesObject], ...] = (Node, Pod, Service)
"""What findings are about and has conditions; a NetworkPolicy or a ConfigMap has no status."""
SETTLES = 1500.0
"""Seconds within which whatever lasts is heard: each agent tells it again each ten minutes at its usual period."""
LONGEST = 86_400
"""Seconds that a message may give itself at most."""
EVERY = 30.0
"""Seconds between two writes of one object."""
BURST = 2.0 * MAX_FINDINGS
PER_SECOND = 2.0
MAX_OF_SPEAKER = 2 * MAX_FINDINGS
"""Findings that are kept of one speaker; of a service with copies, of all of them."""
MAX_SPEAKERS = 16_384
MAX_OF_OBJECT = 16
"""Conditions of one object: the causes first."""
_BY_NAME = {NAMES[kind]: kind for kind in KINDS}
_CODE = re.compile(r"(?=.{1,63}\Z)[a-z][a-z0-9]*(-[a-z0-9]+)*")
"""Makes a type that the API server takes: one that it refuses would keep the others of its object away."""
_MARK = f'"{PREFIX}'.encode()

Target = tuple[type[KubernetesObject], str, str]
"""Kind, namespace and name of an object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One of ours, as it stands or should stand in a status; its status is ``True``."""

    type: str
    reason: str
    message: str
    since: str
    """``lastTransitionTime``, RFC 3339."""
    generation: int = 0
    """``observedGeneration``; 0: the object has none."""

    def body(self) -> Mapping[str, Any]:
        """For server-side apply."""
        shown = {"type": self.type, "status": "True", "reason": self.reason, "message": self.message}
        observed = {"observedGeneration": self.generation} if self.generation else {}
        return {**shown, **observed, "lastTransitionTime": self.since}


class _ShownCondition(Shape, frozen=True):
    type: str
    status: str = ""
    reason: str | None = None
    message: str | None = None
    last_transition_time: str | None = None
    observed_generation: int | None = None


class _ShownStatus(Shape, frozen=True):
    conditions: tuple[_ShownCondition, ...] | None = None


class _Shown(Shape, frozen=True):
    status: _ShownStatus | None = None


def shown(raw: bytes) -> tuple[Condition, ...]:
    """Ours among the conditions of an object as the API served it; none of a status that cannot be read."""
    if _MARK not in raw:
        return ()
    try:
        read = msgspec.json.decode(raw, type=_Shown)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return ()
    return tuple(
        Condition(
            type=one.type,
            reason=one.reason or "",
            message=one.message or "",
            since=one.last_transition_time or "",
            generation=one.observed_generation or 0,
        )
        for one in ((read.status and read.status.conditions) or ())
        if one.type.startswith(PREFIX) and one.status == "True"
    )


def target_of(who: Speaker, finding: Finding) -> Target | None:
    """The object that a finding is told on; None for one without conditions. Where a finding is about no object, it is
    told on the Node whose key it was told with.
    """
    kind, namespace, name = object_of(msgspec.structs.replace(finding, node=who[1]) if who[1] else finding)
    return (_BY_NAME[kind], namespace, name) if kind in _BY_NAME else None


def may_say(who: Speaker, target: Target, value: KubernetesObject | None) -> bool:
    """Whether this speaker is heard of the object: a node's agent not of other Nodes and their Pods."""
    kind, _, name = target
    if not who[1] or kind is Service:
        return True
    return name == who[1] if kind is Node else isinstance(value, Pod) and value.node == who[1]


_Key = tuple[Target, str, str, str]
"""On which object; instance of the speaker, code, and what it is about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """The last that one copy of a service said of one finding."""

    who: Speaker
    finding: Finding
    lasts: bool
    generation: int
    """Of the object when it was said."""
    at: float
    lives: float
    """Seconds after which it counts no more."""


class Reported:
    """What all agents have said. ``hear`` takes it in; ``by_target`` is what counts at a moment."""

    def __init__(self, now: float) -> None:
        self._heard: dict[Speaker, dict[_Key, Heard]] = {}
        self._allowances = Allowances(burst=BURST, per_second=PER_SECOND, most=MAX_SPEAKERS)
        self._listening = now

    def deaf(self, now: float) -> None:
        """Nothing could be heard until now: what was heard before counts as said now, and what was not is unknown."""
        self._listening = now

    def settled(self, now: float) -> bool:
        """Whether agents were listened to for so long that whatever lasts was heard."""
        return now - self._listening >= SETTLES

    def allow(self, who: Speaker, now: float) -> bool:
        """Takes one from the speaker's allowance; called first, for whatever it says."""
        return self._allowances.take(who, now)

    def hear(self, who: Speaker, target: Target, event: FindingEvent, generation: int, now: float) -> str:
        """Takes in one message; why not, or empty."""
        if not _CODE.fullmatch(event.finding.code):
            return "malformed"
        said = self._heard.setdefault(who, {})
        key = target, event.instance, event.finding.code, event.finding.about
        if key not in said and len(said) >= MAX_OF_SPEAKER:
            return "too-many"
        said[key] = Heard(
            who=who,
            finding=event.finding,
            lasts=event.state != "gone",
            generation=generation,
            at=now,
            lives=max(SETTLES, 2.0 * min(event.again, LONGEST)),
        )
        return ""

    def by_target(self, now: float) -> Mapping[Target, list[Heard]]:
        """What counts now, by object; what was told too long ago is forgotten."""
        found: dict[Target, list[Heard]] = {}
        for who, said in tuple(self._heard.items()):
            for key, one in tuple(said.items()):
                if now - max(one.at, self._listening) < one.lives:
                    found.setdefault(key[0], []).append(one)
                else:
                    del said[key]
            if not said:
                del self._heard[who]
        return found

    def forget(self, targets: Iterable[Target]) -> None:
        """These objects are gone."""
        if gone := frozenset(targets):
            self._heard = {
                who: {key: one for key, one in said.items() if key[0] not in gone} for who, said in self._heard.items()
            }


def wanted(heard: Iterable[Heard], there: tuple[Condition, ...], now: int, *, settled: bool) -> tuple[Condition, ...]:
    """The conditions that an object should have.

    ``there``: those that it has; a transition time among them stays. ``now``: Unix seconds. ``settled``: what nobody
    has been heard of is gone.
    """
    by_code: dict[str, list[Heard]] = {}
    for one in heard:
        by_code.setdefault(one.finding.code, []).append(one)
    stands = {one.type: one for one in there}
    joined = (_Joined.of(said) for said in by_code.values())
    lasting = sorted((one for one in joined if one is not None), key=lambda one: (one.precedence, one.type))
    made = [one.condition(stands.get(one.type), now) for one in lasting[:MAX_OF_OBJECT]]
    known = {PREFIX + reason_of(code) for code in by_code}
    kept = () if settled else (one for one in there if one.type not in known)
    return tuple(sorted((*made, *kept), key=lambda one: one.type))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Joined:
    """All that is said of one code and object."""

    type: str
    precedence: int
    message: str
    since: int
    generation: int

    @classmethod
    def of(cls, said: Iterable[Heard]) -> _Joined | None:
        """None when nobody finds it any more."""
        lasting = sorted((one for one in said if one.lasts), key=lambda one: (one.finding.about, one.who))
        if not lasting:
            return None
        first = lasting[0].finding
        others = len({one.finding.about for one in lasting}) - 1
        more = f" ({others} more such)" if others else ""
        who = named(dict.fromkeys(one.who for one in lasting))
        return cls(
            type=PREFIX + reason_of(first.code),
            precedence=first.precedence,
            message=f"{plain(first.cause, MAX_FAULT)}{more}; {plain(remedy_of(first), MAX_REMEDY)} (says {who})",
            since=min((one.finding.since for one in lasting if one.finding.since > 0), default=0),
            generation=max(one.generation for one in lasting),
        )

    def condition(self, stands: Condition | None, now: int) -> Condition:
        """As a condition; the time is that of the one that stands already."""
        return Condition(
            type=self.type,
            reason=self.type.removeprefix(PREFIX),
            message=self.message,
            since=stands.since if stands is not None else rfc3339(min(self.since or now, now)),
            generation=self.generation,
        )


def status_path(target: Target) -> str:
    """Where its status is applied."""
    kind, namespace, name = target
    within = f"/namespaces/{namespace}" if namespace else ""
    return f"/api/v1{within}/{KIND_OF[kind].plural}/{name}/status"


def status_body(target: Target, conditions: Iterable[Condition]) -> Mapping[str, Any]:
    """Server-side apply body: exactly these conditions are ours; without any we own nothing of the status."""
    kind, namespace, name = target
    listed = [one.body() for one in conditions]
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    status = {"status": {"conditions": listed}} if listed else {}
    return {"apiVersion": "v1", "kind": NAMES[kind], "metadata": metadata, **status}
