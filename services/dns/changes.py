"""Keeps the latest change of the Corefile, what is tuned and what is proposed in one value, ``dns.tuning``.

Promises that it is written by compare-and-set alone, by the copy that holds the lease, so that another copy goes on
with the same change at the same step. :class:`Wishes` answers people in every copy: it says what a request comes to,
and leaves it in ``dns.wish`` for the copy with the lease. What was measured since a text was read lives in memory: a
copy that takes over measures anew.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Literal, cast

import msgspec

from chassis.bus.client import KV, Conflict, View
from chassis.faults import Refused
from chassis.telemetry.log import Log
from proto.dns import (
    DnsChangeAnswer,
    DnsChangeRequest,
    DnsProposal,
    DnsServerText,
    DnsTuning,
    DnsWish,
    digest_of,
)
from services.dns.core import change as changing
from services.dns.core.change import Seen, Sign
from services.dns.core.corefile import Recipe
from services.dns.core.decision import Chosen
from services.dns.core.samples import Counts
from services.dns.core.tuning import SETTINGS_OF, Window, proposals, summed, tuned

TUNING_KEY = "tuning"
WISH_KEY = "wish"
REST_SECONDS = 300.0
"""Between the end of a change and the next one that nobody asked for."""
Mode = Literal["observe", "advise", "act"]
_NOTHING = Window(seconds=0.0, counts=Counts())


class Changes:
    """``recipe`` for a decision, ``begin`` before it is written, ``observe`` with each report, ``wish`` for people."""

    def __init__(self, mode: Mode, recipe: Recipe, *, kv: KV, decisions: View, log: Log) -> None:
        self._mode = mode
        self._recipe = recipe
        self._kv = kv
        self._decisions = decisions
        self._log = log
        self._window = _NOTHING
        self._judged = _NOTHING
        self._after = ""
        self._servers: Mapping[str, DnsServerText] = {}
        self._silent_since: float | None = None

    @property
    def tuning(self) -> DnsTuning:
        """As it is in the bucket."""
        return tuning_of(self._decisions) or DnsTuning(mode=self._mode)

    @property
    def recipe(self) -> Recipe:
        """What the Corefile is made of now."""
        return tuned(self._recipe, self.tuning.settings)

    @property
    def is_under_way(self) -> bool:
        """Whether a change is: no server is taken away meanwhile."""
        return changing.is_under_way(self.tuning.change)

    def held(self, chosen: Chosen) -> Chosen:
        """See ``core.change.held``."""
        return changing.held(chosen, self.tuning.change)

    async def begin(self, chosen: Chosen, ours: str | None) -> bool:
        """What a decision begins is written down before it; False when somebody else wrote in between.

        ``ours``: the text decided last.
        """
        present = self.tuning
        measured, servers = self._window.measured, self._servers.values()
        following = changing.begun(present, chosen, measured, servers, ours=ours, now=time.time())
        return await self._write(present, following)

    async def wish(self) -> bool:
        """Takes a person's request; True when it changed something, so that all is to be decided anew."""
        present = self.tuning
        entry = self._decisions.entries.get(WISH_KEY)
        wish = cast("DnsWish | None", entry.value if entry is not None else None)
        if wish is None or wish.request == present.request:
            return False
        following = _fulfilled(present, wish, time.time())
        await self._write(present, msgspec.structs.replace(following, request=wish.request))
        return True

    async def observe(self, text: str | None, window: Window, counted: Mapping[str, Counts], latest: Window) -> None:
        """``window``: the last minute; ``latest``: since the last report; ``counted``: by server."""
        self._window = window
        self._servers = {key: _report_of(key, counts) for key, counts in counted.items()}
        present, now = self.tuning, time.time()
        following = self._judge(present, text, latest, now)
        proposed = () if self._mode == "observe" else self._proposals(following, text, now)
        following = msgspec.structs.replace(following, mode=self._mode, proposals=proposed)
        rested = not following.past or now - following.past[0].at >= REST_SECONDS
        if self._mode == "act" and proposed and rested and not changing.is_under_way(following.change):
            following = changing.proposed(following, proposed[0], now=now)
        await self._write(present, following)

    def _judge(self, tuning: DnsTuning, text: str | None, latest: Window, now: float) -> DnsTuning:
        change = tuning.change
        if change is None or not changing.is_under_way(change) or change.after != self._after:
            self._judged, self._silent_since = _NOTHING, None
        if change is None or not changing.is_under_way(change):
            return tuning
        self._after = change.after
        fewer = len(self._servers) < len(change.servers)
        self._silent_since = (self._silent_since or time.monotonic()) if fewer else None
        if change.state == "judged":
            self._judged = summed((self._judged, latest))
        seen = Seen(
            text=digest_of(text) if text is not None else "",
            servers=self._servers,
            silent_for=time.monotonic() - self._silent_since if self._silent_since is not None else 0.0,
            measured=self._judged.measured,
        )
        found = changing.sign(change, seen, now=now)
        return changing.step(tuning, *found, now=now) if found is not None else tuning

    def _proposals(self, tuning: DnsTuning, text: str | None, now: float) -> tuple[DnsProposal, ...]:
        refused = changing.refused(tuning, now=now)
        return proposals(self._window, self._recipe, tuning.settings, text, refused=refused)

    async def _write(self, present: DnsTuning, following: DnsTuning) -> bool:
        entry = self._decisions.entries.get(TUNING_KEY)
        if following == present and entry is not None:
            return True
        if entry is None:
            written = await self._kv.create(TUNING_KEY, following, mend=True)
        else:
            written = await self._kv.update(TUNING_KEY, following, entry.revision)
        if isinstance(written, Conflict):
            return False
        change = following.change
        if change is not None and change != present.change:
            self._log.info("corefile-change", change=change.name, state=change.state, outcome=change.outcome)
        return True


class Wishes:
    """The endpoint ``dns.change``."""

    def __init__(self, kv: KV, decisions: View) -> None:
        self._kv = kv
        self._decisions = decisions

    async def take(self, request: DnsChangeRequest) -> DnsChangeAnswer:
        """Raises Refused for what cannot be done, and Unavailable."""
        tuning = tuning_of(self._decisions)
        if tuning is None:
            raise Refused("not-yet", "dns has measured nothing yet; ask again in a minute", retry=True)
        said = _refusal_or_word(tuning, request)
        wish = DnsWish(request=secrets.token_hex(8), verb=request.verb, name=request.name)
        await self._kv.put(WISH_KEY, wish)
        return DnsChangeAnswer(request=wish.request, said=said)


def tuning_of(decisions: View) -> DnsTuning | None:
    """The value of ``dns.tuning``; None before there was one."""
    entry = decisions.entries.get(TUNING_KEY)
    return cast("DnsTuning", entry.value) if entry is not None else None


def _refusal_or_word(tuning: DnsTuning, request: DnsChangeRequest) -> str:
    change = tuning.change
    if request.verb == "apply":
        if tuning.mode == "observe":
            raise Refused("observing", "dns only observes; set AIRMESH_DNS_MODE to advise or act", retry=False)
        if request.name not in {one.name for one in tuning.proposals}:
            remedy = ", ".join(one.name for one in tuning.proposals) or "there is none now"
            raise Refused("no-proposal", f"no proposal is called {request.name!r}; see `airmesh dns plan`: {remedy}")
        if changing.is_under_way(change):
            named = change.name if change is not None else ""
            raise Refused("busy", f"the change {named} is under way; wait for its end, or revert it")
        return f"{request.name} is written, then judged; see `airmesh dns watch`"
    if change is not None and request.name in ("", change.name) and (change.state, Sign.REVERTED) in changing.STEPS:
        return f"{change.name} is taken back"
    if any(key in SETTINGS_OF.get(request.name, ()) for key, _ in tuning.settings):
        return f"{request.name} is taken out"
    raise Refused("nothing", f"nothing to take back is called {request.name!r}; see `airmesh dns plan`")


def _fulfilled(tuning: DnsTuning, wish: DnsWish, now: float) -> DnsTuning:
    change = tuning.change
    if wish.verb == "apply":
        found = [one for one in tuning.proposals if one.name == wish.name]
        return changing.proposed(tuning, found[0], now=now) if found and not changing.is_under_way(change) else tuning
    if change is not None and wish.name in ("", change.name):
        return changing.step(tuning, Sign.REVERTED, Sign.REVERTED.value, now=now)
    settings = SETTINGS_OF.get(wish.name, ())
    if changing.is_under_way(change) or not any(key in settings for key, _ in tuning.settings):
        return tuning
    return changing.removed(tuning, wish.name, settings, now=now)


def _report_of(server: str, counts: Counts) -> DnsServerText:
    return DnsServerText(server=server, version=counts.version, failed=counts.refused)
