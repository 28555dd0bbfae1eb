"""A condition that has held once stays: what a service has in force outlives the loss of what it came from."""

from __future__ import annotations

from chassis.telemetry.health import Condition


def test_a_latched_condition_says_why_not_until_it_holds_and_then_stays() -> None:
    condition = Condition("latched")
    condition.latch(False, "rules are being listed")
    assert (condition.ok, condition.why) == (False, "rules are being listed")
    condition.latch(False, "no compilation is finished")
    assert (condition.ok, condition.why) == (False, "no compilation is finished")
    condition.latch(True, "")
    condition.latch(False, "not connected")
    assert (condition.ok, condition.why) == (True, "")
