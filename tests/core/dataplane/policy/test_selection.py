"""Which selectors match which identities, through any order of changes, and what a change costs."""

from __future__ import annotations

from random import Random

import pytest

from kit.selectors import Candidate
from proto.identity import IdentityRecord
from proto.objects import Selector
from proto.policy import SelectorPeer
from services.dataplane.core.policy.selection import Selection
from tests.core.dataplane.notation import record

SPACES = ("shop", "depot")
SELECTORS = [
    SelectorPeer(namespace=space, pod_selector=Selector((("app", app),))) for space in SPACES for app in ("web", "db")
] + [SelectorPeer(namespace="", namespace_selector=Selector(()), pod_selector=Selector((("team", "a"),)))]


def use(selection: Selection, selector: SelectorPeer) -> None:
    for _ in selection.index(selector):
        pass


@pytest.mark.parametrize("seed", range(12))
def test_each_identity_has_the_selectors_that_match_its_record(seed: int) -> None:
    rng, selection = Random(seed), Selection()
    records: dict[int, IdentityRecord] = {}
    in_use: set[SelectorPeer] = set()
    for _ in range(150):
        identity, selector = rng.randrange(300, 312), rng.choice(SELECTORS)
        match rng.randrange(4):
            case 0:
                labels = f"app={rng.choice(['web', 'db'])}+team={rng.choice('ab')}"
                records[identity] = record(identity, rng.choice(SPACES), labels)
                selection.learn(records[identity])
            case 1:
                records.pop(identity, None)
                selection.forget(identity)
            case 2:
                use(selection, selector)
                in_use.add(selector)
            case _:
                selection.release([one for one in (selector,) if one in in_use])
                in_use.discard(selector)
                selection.reuse(0)
        for known in range(300, 312):
            candidate = Candidate.of(records[known]) if known in records else None
            wanted = {one for one in in_use if candidate is not None and candidate.is_in(one)}
            mask = selection.set_of(known)
            assert {one for one in in_use if mask & selection.bit(one)} == wanted
            assert mask.bit_count() == len(wanted)


def test_a_selector_that_goes_costs_the_identities_that_it_matches() -> None:
    selection = Selection()
    web, database = SELECTORS[:2]
    for identity in range(300, 2300):
        selection.learn(record(identity, "shop", f"app={'db' if identity < 303 else 'web'}"))
    use(selection, web)
    use(selection, database)
    selection.dirty.clear()
    selection.release([database])
    assert selection.visits == 3
    assert set(selection.dirty) == {300, 301, 302}
