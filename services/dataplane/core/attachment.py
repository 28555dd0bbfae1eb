"""An attachment: one interface of one container, the key of everything that a runtime asks for.

Source: the CNI specification 1.1.0, "Execution Protocol" (an attachment is named by container id and interface).
"""

from __future__ import annotations

from typing import NamedTuple


class Attachment(NamedTuple):
    """Names of a container and of the interface within it."""

    container: str
    interface: str
