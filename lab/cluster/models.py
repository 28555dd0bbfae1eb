"""Which model of routing a lab is asked for: the objects that a person would edit, edited.

Owns how a model is spelt in IPPools and in FelixConfiguration (Calico's kinds). What is asked of a running lab is a
live change, as for any user. Which models there are, is `kit.models`' to say; one that this release does not serve is
refused before anything is changed.

IP in IP carries IPv4 alone: with `ipip` the IPv6 pool asks for VXLAN, as Calico's manual has it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

import msgspec

from kit.models import SERVED
from lab.cluster.launch import command, kubectl
from lab.cluster.record import read_record, write_record
from lab.paths import Paths
from lab.topology import LabError

HOST_GW, VXLAN, IPIP, WIREGUARD, AUTO = "host-gw", "vxlan", "ipip", "wireguard", "auto"
MODELS = (HOST_GW, VXLAN, IPIP, WIREGUARD, AUTO)
ANNOTATION = "airmesh.io/model"
"""Of an IPPool: `auto` leaves the choice to what is measured between each pair of nodes."""
_SECONDS = 60.0
FELIX = "felixconfigurations.crd.projectcalico.org"


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """A merge patch of one object."""

    kind: str
    name: str
    patch: Mapping[str, Any]


def check_served(model: str, served: Collection[str] = tuple(SERVED)) -> None:
    """Raises `LabError` for a model that there is not, or that this release does not serve."""
    if not model:
        return
    if model not in MODELS:
        raise LabError(f"model {model!r}: one of {', '.join(MODELS)}")
    if (VXLAN if model == AUTO else model) not in served:
        raise LabError(f"model {model}: this release serves {', '.join(sorted(served))} alone")


def pool_patch(model: str, family: int, mode: str = "Always") -> dict[str, Any]:
    """What an IPPool of a family says of its model, in all that could say it: nothing of the model before stays."""
    asked = VXLAN if model == IPIP and family == 6 else model
    return {
        "metadata": {"annotations": {ANNOTATION: AUTO if asked == AUTO else None}},
        "spec": {"ipipMode": mode if asked == IPIP else "Never", "vxlanMode": mode if asked == VXLAN else "Never"},
    }


def edits(model: str, pools: Iterable[Mapping[str, Any]], *, felix: bool, mode: str = "Always") -> Iterator[Edit]:
    """The edits that ask for a model, of all pools. ``felix``: whether there is a FelixConfiguration `default`.

    Encryption goes before whatever pools say: it is asked for first and taken back last, so each change is one step.
    """
    on = model == WIREGUARD
    encryption = Edit(kind=FELIX, name="default", patch={"spec": {"wireguardEnabled": on, "wireguardEnabledV6": on}})
    if on:
        yield encryption
    for pool in pools:
        family = ip_network(pool["spec"]["cidr"]).version
        yield Edit(kind="ippool", name=pool["metadata"]["name"], patch=pool_patch(model, family, mode))
    if felix and not on:
        yield encryption


async def ask(where: Paths, model: str, mode: str = "Always") -> None:
    """Edit the lab's objects so that they ask for a model, and note it. Raises `LabError`."""
    check_served(model)
    pools = json.loads(await _kubectl(where, "get", "ippools", "--output=json"))["items"]
    felix = bool(await _kubectl(where, "get", "--ignore-not-found", "--output=name", "crd", FELIX)) and bool(
        await _kubectl(where, "get", "--ignore-not-found", "--output=name", FELIX, "default")
    )
    for edit in edits(model, pools, felix=felix, mode=mode):
        if edit.kind == FELIX and not felix:
            await _make_felix(where, edit)
            continue
        patch = json.dumps(edit.patch)
        await _kubectl(where, "patch", edit.kind, edit.name, "--type=merge", f"--patch={patch}")
    record = read_record(where)
    if record is not None and record.model != model:
        write_record(where, msgspec.structs.replace(record, model=model))


async def _make_felix(where: Paths, edit: Edit) -> None:
    made = {"apiVersion": "crd.projectcalico.org/v1", "kind": "FelixConfiguration", "metadata": {"name": edit.name}}
    made |= edit.patch
    path = where.state / "felix.json"
    path.write_text(json.dumps(made))
    await _kubectl(where, "apply", "--server-side", "--field-manager=airmesh-lab", "-f", str(path))


async def _kubectl(where: Paths, *arguments: str) -> str:
    return await command(where, [kubectl(), f"--kubeconfig={where.kubeconfig}", *arguments], "kubectl", _SECONDS)
