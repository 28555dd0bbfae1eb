"""What a namespace is told when the policy maps have no room for all of it."""

from __future__ import annotations

from services.dataplane.policy.enforce import Without
from services.dataplane.policy.refused import faults_of


def test_a_namespace_is_reported_on_itself_with_the_numbers() -> None:
    without = Without({"large": 7}, 131_072, {"cuts": 900}, 500)
    identities, cidrs = faults_of("n1", without)
    assert {(one.group, one.kind, one.namespace, one.node) for one in (identities, cidrs)} == {
        ("", "Namespace", "", "n1")
    }
    assert (identities.name, identities.reason) == ("large", "IdentitiesNotHeld")
    assert "7 identities of namespace large" in identities.fault
    assert "131072" in identities.fault
    assert (cidrs.name, cidrs.reason) == ("cuts", "CIDRsNotHeld")
    assert "900 prefixes" in cidrs.fault
    assert "room for 500" in cidrs.fault
    assert "AIRMESH_TABLE_MEMORY" in identities.remedy
    assert list(faults_of("n1", Without({}, 131_072, {}, 500))) == []
