"""What this node says of its pairs: each step of a change as an event, and how each pair is, when somebody asks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, cast

from proto.events import ModelStep
from proto.pairs import GivenUp, Measurement, PairState
from services.routing.core.choice import NOTHING, Choice
from services.routing.core.evidence import Evidence, Verdict, Way
from services.routing.core.models.contract import Path
from services.routing.core.pairs import PairKey

Since = Mapping[PairKey, tuple[str, int]]
"""The model that a pair takes, and since when, in Unix seconds (0: before the agent began)."""


def steps(node: str, pairs: Mapping[PairKey, Choice], evidence: Mapping[Way, Evidence]) -> Iterator[ModelStep]:
    """What is happening to the pairs that are being changed; of one that waits the same each time."""
    for key, choice in pairs.items():
        model = choice.model

        def step(what: str, model: str, why: str, before: str = "", key: PairKey = key) -> ModelStep:
            family: Literal[4, 6] = 4 if key.family == 4 else 6
            return ModelStep(node=node, peer=key.peer, family=family, step=what, model=model, before=before, why=why)

        if choice.pending:
            laid = any(path.model == choice.pending for path in choice.candidates)
            yield step("laid" if laid else "waits", choice.pending, choice.why, model)
        elif model != choice.before and choice.before:
            proof = _of_model(model, choice.candidates, evidence)
            if choice.before in choice.asked:
                lost = _of_model(choice.before, choice.candidates, evidence)
                if lost.verdict is Verdict.FAILS:
                    yield step("given-up", choice.before, choice.why)
            if proof.verdict is Verdict.WORKS:
                yield step("proved", model, f"packets of up to {proof.mtu} bytes are answered")
            yield step("taken" if model else "given-up", model or choice.before, choice.why, choice.before)
        elif model and model != choice.before and len(choice.asked) + (model != "host-gw") > 1:
            yield step("taken", model, choice.why)


def since_when(
    pairs: Mapping[PairKey, Choice], before: Since, unix: int, began: bool
) -> dict[PairKey, tuple[str, int]]:
    """Since when each pair takes what it takes. ``began``: the agent has looked before."""
    found = {}
    for key, choice in pairs.items():
        model = choice.model
        known = before.get(key)
        if known is None or known[0] != model:
            known = (model, unix if began or model != choice.before else 0)
        found[key] = known
    return found


def states(pairs: Mapping[PairKey, Choice], evidence: Mapping[Way, Evidence], since: Since) -> Iterable[PairState]:
    """How each pair is."""
    for key, choice in pairs.items():
        path = choice.path
        yield PairState(
            peer=key.peer,
            family=cast(Literal[4, 6], key.family),
            asked=choice.asked,
            model=choice.model,
            pending=choice.pending,
            via=path.via if path is not None else None,
            device=path.device if path is not None else "",
            mtu=path.mtu if path is not None else 0,
            since=since.get(key, ("", 0))[1],
            state=choice.state,
            why=choice.why,
            given_up=tuple(
                GivenUp(model=name, why=why, at=_of_model(name, choice.candidates, evidence).at)
                for name, why in choice.given_up
            ),
            measured=tuple(one for way in choice.candidates for one in _measured(way, evidence)),
        )


def _of_model(name: str, paths: Iterable[Path], evidence: Mapping[Way, Evidence]) -> Evidence:
    for path in paths:
        if path.model == name and path.way is not None:
            return evidence.get(path.way, NOTHING)
    return NOTHING


def _measured(path: Path, evidence: Mapping[Way, Evidence]) -> Iterator[Measurement]:
    known = evidence.get(path.way) if path.way is not None else None
    if known is None or not known.at:
        return
    silent = "" if known.answered else f"{known.lost} in a row to {path.remote} by {path.device} were not answered"
    yield Measurement(
        model=path.model,
        what="layer-2" if path.model == "host-gw" else "small",
        answered=known.answered > 0,
        bytes=64,
        round_trip_us=known.round_trip_us,
        at=known.at,
        why=silent,
    )
    if known.large_at:
        small = known.search.done and known.search.good < known.search.most
        why = f"{known.search.most} bytes would fit by what both nodes say" if small else ""
        yield Measurement(
            model=path.model,
            what="largest",
            answered=known.search.good > 0,
            bytes=known.search.good or known.search.size,
            at=known.large_at,
            why=why,
        )
