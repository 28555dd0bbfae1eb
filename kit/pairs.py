"""What an agent of routing answers to ``proto.pairs.PairsRequest``: of the pairs it has, those that are asked for.

One function for every agent, so that all read a question the same way. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from proto.pairs import MAX_PAIRS, Pairs, PairsRequest, PairState


def chosen(asked: PairsRequest, node: str, pairs: Iterable[PairState]) -> Pairs | None:
    """The answer of ``node``, whose pairs these are; None when it is not asked. Of too many the first by name."""
    if asked.nodes and node not in asked.nodes:
        return None
    found = sorted(
        (
            pair
            for pair in pairs
            if (not asked.peers or pair.peer in asked.peers) and (not asked.states or pair.state in asked.states)
        ),
        key=lambda pair: (pair.peer, pair.family),
    )
    reported = found[:MAX_PAIRS]
    if not asked.measured:
        reported = [replace(pair, given_up=(), measured=()) for pair in reported]
    return Pairs(node=node, pairs=tuple(reported), left_out=len(found) - len(reported))
