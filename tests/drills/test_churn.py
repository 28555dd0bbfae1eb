"""Memory under churn: what comes and goes on a node leaves nothing behind in any agent.

The short form counts the blocks of each agent's allocator: they tell of a leak after a few pods. The long one reads the
resident memory too, after 10,000 pods and 2,000 policies.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.drills.churn import Churn, churning
from tests.drills.probe import Memory

pytestmark = [pytest.mark.privileged, pytest.mark.uncontended]

PODS, POLICIES = 100, 20
WARM = 150
"""Pods of a round until small caches are full."""
ROUNDS = 8
LEFT = ROUNDS * PODS * 2 // 3
"""Blocks more than which something stays: a string that is kept of each pod is one block for each; some hundred more or
less are those of messages on their way.
"""
LOOKS = 30
"""Work that is under way at one look is over at another; what stays is there at each."""
GROWTH = 2 << 20
"""Bytes of resident memory."""


def grown(before: Mapping[str, Memory], after: Mapping[str, Memory]) -> dict[str, str]:
    """By agent: blocks and bytes more, and of what."""
    reported = {}
    for name, now in after.items():
        old = before[name]
        sizes = f"{now.rss - old.rss:+} bytes, {now.held - old.held:+} of them held"
        reported[name] = f"{now.blocks - old.blocks:+} blocks, {sizes}; {kinds(old, now)}"
    return reported


def staying(before: Mapping[str, Memory], after: Mapping[str, Memory]) -> dict[str, str]:
    """Agents with more blocks than ``LEFT``, as :func:`grown` reports them."""
    reported = grown(before, after)
    return {name: reported[name] for name in after if after[name].blocks - before[name].blocks > LEFT}


def kinds(before: Memory, after: Memory) -> str:
    more = {name: count - before.types.get(name, 0) for name, count in after.types.items()}
    most = sorted(more.items(), key=lambda one: -one[1])[:6]
    return ", ".join(f"{count:+} {name}" for name, count in most if count > 0)


async def rounds(churn: Churn, count: int, pods: int, policies: int) -> dict[str, Memory]:
    """So many rounds, and what is held after them."""
    for _ in range(count):
        await churn.round(pods, policies)
    await churn.rest()
    return await churn.look()


@pytest.mark.timeout(600)
async def test_nothing_stays_of_what_came_and_went(tmp_path: Path) -> None:
    async with churning(tmp_path, "cs") as churn:
        await churn.round(WARM, POLICIES)
        await churn.look()  # the first takes some memory itself
        before = await rounds(churn, 1, WARM, POLICIES)
        after = await rounds(churn, ROUNDS, PODS, POLICIES)
        for _ in range(LOOKS):
            if not staying(before, after):
                break
            await churn.rest()
            after = await churn.look()
        assert staying(before, after) == {}
        assert churn.world.fallen() == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
async def test_memory_does_not_grow_with_what_came_and_went(tmp_path: Path) -> None:
    async with churning(tmp_path, "cl") as churn:
        await churn.look()
        before = await rounds(churn, 8, 250, 50)
        after = await rounds(churn, 40, 250, 50)
        reported = grown(before, after)
        print("\n".join(f"{name}: {reported[name]}" for name in reported))
        assert {name: reported[name] for name in after if after[name].rss - before[name].rss > GROWTH} == {}
        assert churn.world.fallen() == []
