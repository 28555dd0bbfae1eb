"""The service and node that said a message on the bus, by its subject: a key may publish on its own subjects alone."""

from __future__ import annotations

from proto.codec import Malformed, decode_segment
from proto.subjects import speaker_of
from services.cluster.core.allowances import Speaker


def speaker(subject: str, what: str) -> Speaker | None:
    """Who said ``what`` (:func:`proto.subjects.speaker_of`) on a subject; None where no one key grants it."""
    granted = speaker_of(subject, what)
    try:
        return granted and (granted[0], decode_segment(granted[1]) if granted[1] else "")
    except Malformed:
        return None
