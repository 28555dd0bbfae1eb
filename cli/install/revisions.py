"""What was applied, kept in the cluster: a revision is all objects of one installation, so that there is a way back.

One ConfigMap each, the last few kept. Its objects are compressed (a ConfigMap holds 1 MiB; a revision takes some 10
KiB). Secrets are no part of it: keys stay when one goes back. Pure.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cli.faults import Declined, Usage
from cli.install.kinds import Object, Ref, ref
from cli.install.names import NAMESPACE, PART_OF, REVISION

KEPT = 5
APPLYING = "applying"
COMPLETE = "complete"


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """One installation. ``state``: `applying` while it is under way or where it was interrupted, else `complete`."""

    number: int
    state: str
    tag: str
    objects: tuple[Object, ...]

    @property
    def name(self) -> str:
        """Of its ConfigMap."""
        return f"airmesh-revision-{self.number}"

    def write(self) -> Object:
        """The ConfigMap."""
        packed = gzip.compress(_text(self.objects), mtime=0)
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": self.name,
                "namespace": NAMESPACE,
                "labels": {PART_OF: "airmesh", REVISION: str(self.number)},
            },
            "data": {"state": self.state, "tag": self.tag},
            "binaryData": {"objects": base64.b64encode(packed).decode()},
        }


def read(found: Mapping[str, Any]) -> Revision:
    """Of a ConfigMap; raises `Declined` for one that is no revision."""
    name = found["metadata"]["name"]
    try:
        packed = base64.b64decode(found["binaryData"]["objects"], validate=True)
        objects = tuple(json.loads(gzip.decompress(packed)))
        number = int(found["metadata"]["labels"][REVISION])
        return Revision(number=number, state=found["data"]["state"], tag=found["data"]["tag"], objects=objects)
    except (KeyError, ValueError, OSError, EOFError) as error:
        raise Declined(
            f"ConfigMap {name} holds no revision ({error})", f"delete it: {name} cannot be gone back to"
        ) from error


def history(found: Iterable[Mapping[str, Any]]) -> tuple[Revision, ...]:
    """Of all ConfigMaps with a revision's label, the oldest first."""
    return tuple(sorted((read(one) for one in found), key=lambda one: one.number))


def following(revisions: Sequence[Revision], tag: str, objects: tuple[Object, ...]) -> Revision:
    """The revision that an installation of these objects is: the last one where that says the same, so that the one
    before it stays the way back; else another, in place of the last one where that was interrupted.
    """
    last = revisions[-1] if revisions else Revision(number=0, state=COMPLETE, tag="", objects=())
    if last.state == COMPLETE and _text(last.objects) == _text(objects):
        return last
    number = last.number if last.state == APPLYING else last.number + 1
    return Revision(number=number, state=APPLYING, tag=tag, objects=objects)


def _text(objects: Sequence[Object]) -> bytes:
    return json.dumps(objects, sort_keys=True).encode()


def before(revisions: Sequence[Revision], wanted: str) -> Revision:
    """The revision to go back to: `previous`, or a number. Raises `Usage` where there is none."""
    complete = [one for one in revisions if one.state == COMPLETE]
    if wanted == "previous":
        # Of an upgrade that was interrupted the last complete one is the way back; else the one before.
        interrupted = bool(revisions) and revisions[-1].state != COMPLETE
        complete = complete if interrupted else complete[:-1]
        found = complete[-1] if complete else None
    else:
        found = next((one for one in revisions if str(one.number) == wanted), None)
    if found is None:
        known = ", ".join(f"{one.number} (tag {one.tag}, {one.state})" for one in revisions) or "none"
        raise Usage(f"there is no revision {wanted!r} to go to: {known}", "name one of these with --to")
    return found


def gone(revisions: Iterable[Revision], wanted: Iterable[Object]) -> list[Ref]:
    """Objects of earlier revisions that are in the wanted one no more, those that others need last."""
    kept = {ref(one) for one in wanted}
    found = {ref(one): None for revision in revisions for one in reversed(revision.objects)}
    return [one for one in found if one not in kept and one.kind not in ("Namespace", "CustomResourceDefinition")]
