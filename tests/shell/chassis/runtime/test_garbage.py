"""The collector: what has come to stay is visited once, and cycles that died there are found by a look for them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from chassis.runtime.garbage import has_grown

REPOSITORY = Path(__file__).resolve().parents[4]
MOST = 20_000
"""Objects that a collection visits: some 10 ms."""
PROGRAM = """
import gc, weakref
from ipaddress import ip_address
from chassis.runtime.garbage import freeze_survivors, thaw

class Node: pass

freeze_survivors()
freeze_survivors()
visited = []
def look(phase, info):
    if phase == "start" and info["generation"] == 2:
        visited.append(len(gc.get_objects()))
gc.callbacks.append(look)

def cycle():
    one = Node()
    one.self = one
    return one

kept, dying = {}, []
def keep(number):
    kept[number] = (number, ip_address(number), [number])

for number in range(300_000):
    keep(number)
    if number % 10_000 == 0:
        dying.append(cycle())
gc.collect()
gone = [weakref.ref(one) for one in dying]
young = weakref.ref(cycle())
dying.clear()
gc.collect()
print(len(gc.callbacks), len(visited), max(visited), sum(ref() is not None for ref in gone), young() is not None)
print(thaw() > 0, sum(ref() is not None for ref in gone), gc.get_freeze_count() > 400_000)
visited.clear()
for number in range(300_000, 400_000):
    keep(number)
print(len(visited), max(visited))
gc.freeze()
frozen = gc.get_freeze_count()
passing = []
for _ in range(20):
    passing.append(cycle())
    gc.collect()
gone = [weakref.ref(one) for one in passing]
passing.clear()
gc.collect()
print(gc.get_freeze_count() <= frozen, sum(ref() is not None for ref in gone))
"""


def test_a_collection_visits_what_is_new_and_old_cycles_are_found_by_looking() -> None:
    reported = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=60
    )
    first, then, after, steady = reported.stdout.splitlines()
    callbacks, collections, most, old, young = first.split()
    assert callbacks == "2", "told once, however often it is asked for"
    assert int(collections) > 5
    assert int(most) < MOST, "of 900,000 objects that are kept"
    assert (old, young) == ("30", "False")
    assert then == "True 0 True"
    again, most = after.split()
    assert int(again) > 5
    assert int(most) < MOST, "what a look for cycles has visited does not let more come together before the next one"
    assert steady == "True 0", "cycles of who keeps no more than before are freed as they die"


def test_only_who_has_grown_looks() -> None:
    assert has_grown(60, 0)
    assert has_grown(126, 100)
    assert not has_grown(100, 100)
    assert not has_grown(120, 100)
