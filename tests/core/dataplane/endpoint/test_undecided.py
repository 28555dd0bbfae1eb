"""Which endpoints a change is about, through any order of changes."""

from __future__ import annotations

from random import Random

import pytest

from services.dataplane.core.attachment import Attachment
from services.dataplane.core.endpoint.undecided import PodName, Undecided

PODS: list[PodName] = [("shop", "web"), ("shop", "db"), ("depot", "web"), ("", "")]


@pytest.mark.parametrize("seed", range(12))
def test_a_change_opens_what_it_is_about_and_nothing_else(seed: int) -> None:
    rng = Random(seed)
    known = {Attachment(f"c{number}", "eth0"): rng.choice(PODS) for number in range(3)}
    undecided, wanted = Undecided(known), set(known)
    for _ in range(200):
        attachment, pod = Attachment(f"c{rng.randrange(8)}", "eth0"), rng.choice(PODS)
        match rng.randrange(5):
            case 0:
                known[attachment] = pod
                undecided.put(attachment, pod)
                wanted.add(attachment)
            case 1:
                known.pop(attachment, None)
                undecided.drop(attachment)
                wanted.discard(attachment)
            case 2:
                undecided.changed([pod], ())
                wanted |= {one for one, of in known.items() if of == pod}
            case 3:
                undecided.changed((), [pod[0]])
                wanted |= {one for one, of in known.items() if of[0] == pod[0]}
            case _:
                undecided.decided(attachment)
                wanted.discard(attachment)
        assert set(undecided.open) == wanted
