"""Which of the models that are asked for a pair of nodes takes, by what was measured, and what it waits for.

One model asked for (``Always``): it is taken, whatever is measured of it, and never given up; while packets take
another way, only once it is proved. Several: the first that works. What works stays: one that is to be preferred is
taken when it has worked for :data:`STABLE` seconds, twice as long for each time that it failed before, so that a way
that comes and goes moves no packets. One that fails is given up for one that is answered after that: where none is, the
other node's agent is away, and its packets may well go on.

Promises: what leads to the other node now goes on until something better is proved, whatever is missing for that;
where nothing leads there, the first that is not known to fail is taken unproved, since it can only be better.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from kit.models import HOST_GW, IPIP, VXLAN
from services.routing.core.evidence import LOST, Evidence, Verdict, Way
from services.routing.core.faults import Fault
from services.routing.core.models import MODELS, path_by
from services.routing.core.models.contract import Model, Pair, Path
from services.routing.core.models.tunnel import PATIENCE

STABLE = 30.0
MOST_STABLE = 1920.0
"""Seconds that a model to be preferred must have worked, at first and at most."""
NOTHING = Evidence()

State = Literal["taken", "pending", "given-up", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a pair takes, for the pools that ask for the same."""

    asked: tuple[str, ...]
    path: Path | None
    """What its routes lead by; None: there is no route."""
    state: State
    why: str
    pending: str = ""
    """The model that is to be taken next."""
    given_up: tuple[tuple[str, str], ...] = ()
    """Models to be preferred to the one that is taken, each with the reason that it is not."""
    faults: tuple[Fault, ...] = ()
    candidates: tuple[Path, ...] = ()
    """Paths that the other node has a part in: those to be measured."""
    failing: bool = False
    """What is taken is not answered."""
    before: str = ""
    """The model that the kernel's routes take now; empty: none leads there."""
    learnt: bool = False
    """BGP leads there, by routes of its own."""

    @property
    def model(self) -> str:
        """What packets take; empty: nothing leads there."""
        return self.path.model if self.path is not None else "bgp" if self.learnt else ""


@dataclass(frozen=True, slots=True)
class _Candidate:
    name: str
    path: Path
    evidence: Evidence

    @property
    def works(self) -> bool:
        return self.evidence.verdict is Verdict.WORKS

    @property
    def fails(self) -> bool:
        return self.evidence.verdict is Verdict.FAILS

    def is_stable(self, now: float) -> bool:
        needed = min(STABLE * 2**self.evidence.failures, MOST_STABLE)
        return self.works and not self.evidence.lost and now - self.evidence.since >= needed


def choose(
    pair: Pair,
    asked: tuple[str, ...],
    current: str,
    evidence: Mapping[Way, Evidence],
    now: float,
    models: Mapping[str, Model] = MODELS,
) -> Choice:
    """What the pair takes. ``asked``: one at least, or empty when it is not known; ``current``: the model of the routes
    that lead there now, empty for none; ``now``: of the clock that ``evidence`` is by.
    """
    old = _old(pair, current, models, evidence)
    if not asked and old is not None:
        why = "what the pool asks for is not known yet; packets go on as before"
        return _choice((), old, "taken", why, candidates=(old.path,))
    asked = asked or (HOST_GW.name,)
    candidates: list[_Candidate] = []
    refused: dict[str, Fault] = {}
    for name in asked:
        if old is not None and name == old.name:
            candidates.append(old)
            continue
        path = path_by(name, pair, models)
        if isinstance(path, Fault):
            refused[name] = path
        else:
            candidates.append(_Candidate(name, path, _known(path, evidence)))
    taken, wanted = _pick(asked, old, candidates, now)
    paths = tuple(one.path for one in ([old] if old and old not in candidates else []) + candidates)
    if taken is None:
        last = refused[asked[-1]]
        return Choice(asked=asked, path=None, state="none", why=last.fault, faults=(last,), candidates=paths)
    reasons = _reasons(asked, taken.name, refused, candidates)
    if taken.name not in asked or wanted is not None:
        pending = wanted.name if wanted is not None else asked[0]
        fault = refused.get(pending) or (_failing(pair, wanted, asked) if wanted is not None and wanted.fails else None)
        why = fault.fault if fault is not None else f"{pending} is laid beside {taken.name} and is being proved"
        faulty = (fault,) if fault is not None else ()
        return _choice(asked, taken, "pending", why, pending=pending, faults=faulty, candidates=paths, given_up=reasons)
    faulty = (_failing(pair, taken, asked),) if taken.fails else ()
    state: State = "given-up" if reasons else "taken"
    return _choice(asked, taken, state, _why(asked, taken, reasons), faults=faulty, candidates=paths, given_up=reasons)


def _old(pair: Pair, current: str, models: Mapping[str, Model], evidence: Mapping[Way, Evidence]) -> _Candidate | None:
    """The way that packets take now, as it should be; the other node need not say that it can be."""
    if current not in models:
        return None
    path = models[current].path(pair)
    return _Candidate(current, path, _known(path, evidence)) if isinstance(path, Path) else None


def _known(path: Path, evidence: Mapping[Way, Evidence]) -> Evidence:
    return evidence.get(path.way, NOTHING) if path.way is not None else NOTHING


def _pick(
    asked: tuple[str, ...], old: _Candidate | None, candidates: list[_Candidate], now: float
) -> tuple[_Candidate | None, _Candidate | None]:
    """What is taken, and what else is to be taken as soon as it is proved (None: nothing)."""
    hopeful = [one for one in candidates if not one.fails or len(asked) == 1]
    if old is None:
        return next(iter(hopeful or candidates), None), None
    if old.name not in asked:
        best = next(iter(hopeful), None)
        if best is None:
            return old, next(iter(candidates), None)
        return (best, None) if best.works else (old, best)
    if len(asked) == 1:
        return old, None
    if old.fails:
        # Where nothing is answered, the other node's agent is away, and packets may well go on.
        answering = (one for one in candidates if one.works and one.evidence.heard > old.evidence.since)
        return next(answering, old), None
    preferred = candidates[: candidates.index(old)]
    return next((one for one in preferred if one.is_stable(now)), old), None


def _choice(
    asked: tuple[str, ...],
    taken: _Candidate,
    state: State,
    why: str,
    *,
    pending: str = "",
    faults: tuple[Fault, ...] = (),
    candidates: tuple[Path, ...] = (),
    given_up: tuple[tuple[str, str], ...] = (),
) -> Choice:
    path, fits = taken.path, taken.evidence.mtu
    if 0 < fits < path.mtu and not taken.evidence.narrow:
        path = replace(path, mtu=fits)
    return Choice(
        asked=asked,
        path=path,
        state=state,
        why=why,
        pending=pending,
        given_up=given_up,
        faults=faults,
        candidates=candidates,
        failing=taken.fails,
    )


def _reasons(
    asked: tuple[str, ...], taken: str, refused: Mapping[str, Fault], candidates: list[_Candidate]
) -> tuple[tuple[str, str], ...]:
    """Why none of those before the one that is taken is."""
    found = {one.name: one for one in candidates}
    reasons: list[tuple[str, str]] = []
    for name in asked[: asked.index(taken)] if taken in asked else ():
        if name in refused:
            reasons.append((name, refused[name].fault))
        elif found[name].fails:
            reasons.append((name, _silence(found[name])))
        elif found[name].works:
            reasons.append((name, "it works again, and is taken when it has worked for a while"))
        else:
            reasons.append((name, "it is being proved"))
    return tuple(reasons)


def _silence(candidate: _Candidate) -> str:
    evidence, path = candidate.evidence, candidate.path
    if evidence.narrow:
        return f"of the packets to {path.remote} by {path.device} none larger than {evidence.mtu} bytes is answered"
    return f"{LOST} packets in a row to {path.remote} by {path.device} were not answered"


def _failing(pair: Pair, candidate: _Candidate, asked: tuple[str, ...]) -> Fault:
    port = pair.own.settings.vxlan_port
    needs = {
        VXLAN.name: f"let UDP port {port} through between the nodes",
        IPIP.name: "let IP protocol 4 through between the nodes",
        HOST_GW.name: "put the nodes on one layer-2 network",
    }
    others = "another model" if len(asked) == 1 else "more models"
    return Fault(
        f"node {pair.peer.node} does not answer by {candidate.name}: {_silence(candidate)}",
        f"{needs.get(candidate.name, 'look at the network between the nodes')}, or ask for {others} in the IPPool",
        of_others=True,
        after=PATIENCE,
    )


def _why(asked: tuple[str, ...], taken: _Candidate, reasons: tuple[tuple[str, str], ...]) -> str:
    if len(asked) == 1:
        return f"{taken.name} alone is asked for"
    known = {Verdict.WORKS: "works", Verdict.FAILS: "is not answered, and nothing else is", Verdict.UNKNOWN: "serves"}
    text = f"{taken.name} is the first of {', '.join(asked)} that {known[taken.evidence.verdict]}"
    return "; ".join((text, *(f"{name}: {why}" for name, why in reasons)))
