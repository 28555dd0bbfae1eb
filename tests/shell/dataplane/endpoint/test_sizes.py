"""Of which links a pod's MTU follows: the uplinks that exist, and no tunnel."""

from __future__ import annotations

import pytest

from services.dataplane.core.endpoint.links import KernelLinks, SeenLink
from services.dataplane.endpoint.reconciler import uplink_mtus


def link(name: str, mtu: int) -> SeenLink:
    return SeenLink(index=1, name=name, alias="", group=0, up=True, mtu=mtu, mac=b"")


@pytest.mark.parametrize(
    ("uplinks", "found"),
    [(("fab0",), [1500]), (("fab0", "fab1"), [1500, 9000]), (("fab0", "am-vxlan"), [1500]), (("absent",), [])],
    ids=["one", "two", "a-tunnel", "none"],
)
def test_pods_are_sized_by_what_leads_to_other_nodes(uplinks: tuple[str, ...], found: list[int]) -> None:
    kernel = KernelLinks(
        links=(link("fab0", 1500), link("fab1", 9000), link("am-vxlan", 1450), link("am0123456789", 1400))
    )
    assert uplink_mtus(kernel, uplinks) == found
