"""The one thread of the agent that enters pods' network namespaces.

Owns the rule that blocking kernel work runs there one at a time, so that no other thread of the agent is ever in a
foreign namespace (``linux.netns.inside``).
"""

from __future__ import annotations

from services.dataplane.one_thread import OneThread


class NamespaceThread(OneThread):
    """The thread that may enter namespaces: it does blocking kernel work in order, from a bounded queue."""

    def __init__(self, name: str = "links", limit: int = 1024) -> None:
        super().__init__(name, limit)
