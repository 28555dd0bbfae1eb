"""Tuning decisions: what the measurements of a minute say of CoreDNS' settings, each with evidence and expected effect.

Owns which settings may be tuned (:data:`TUNABLE`), their values as text, and the rules that propose them. A setting of
the service's environment is where tuning begins; nothing is proposed on too few queries, nothing that a person has
written themselves, and nothing that was taken back within a day. Pure: measurements in, proposals out.

Source: coredns/plugin/{cache,forward,autopath}/README.md.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from proto.dns import DnsMeasured, DnsProposal, Settings
from services.dns.core.caddyfile import Broken
from services.dns.core.corefile import CAPACITY, Recipe
from services.dns.core.merge import merge
from services.dns.core.samples import Counts, quantile
from services.dns.core.samples import together as add

TUNABLE: Mapping[str, tuple[int, int]] = {
    "autopath": (0, 1),
    "capacity": (CAPACITY, 1 << 16),
    "denial_ttl": (1, 3600),
    "prefetch": (0, 1),
    "sequential": (0, 1),
    "serve_stale": (0, 1),
}
"""Settings and the least and most that they may be set to; 0 and 1 are no and yes."""
SETTINGS_OF: Mapping[str, tuple[str, ...]] = {
    "autopath": ("autopath",),
    "cache-capacity": ("capacity",),
    "cache-prefetch": ("prefetch",),
    "forward-policy": ("sequential",),
    "negative-ttl": ("denial_ttl",),
    "serve-stale": ("serve_stale",),
}
"""What each proposal sets."""
FEWEST = 200
"""Queries of a window that say something."""
_FULL = 0.9
_SLOW = 0.016
"""Seconds of an upstream's P99 from which asking ahead is worth a query."""
_TWICE = 2.0
_FEWEST_USEFUL = 0.05
"""Share of useful answers below which a quantile would be that of single queries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What was measured of late, of all servers together."""

    seconds: float
    counts: Counts
    asked: int = 0
    unanswered: int = 0

    @property
    def measured(self) -> DnsMeasured:
        """What changes are judged by."""
        return DnsMeasured(
            queries=self.counts.queries,
            failures=self.counts.by_rcode.get("SERVFAIL", 0),
            p99_ms=quantile(self.counts.durations, _share_of_useful(self.counts)) * 1000,
            asked=self.asked,
            unanswered=self.unanswered,
        )


def _share_of_useful(counts: Counts) -> float:
    """The share of queries that end before all but one in 100 useful answers would, were each of those the slowest.

    What walks a search list in one query (autopath, ndots) leaves out those that are told "no such name" at once: among
    the fewer, those that wait for an upstream are a larger share, though no lookup waits for longer.
    """
    useful = counts.by_rcode.get("NOERROR", 0)
    return 1.0 - 0.01 * min(1.0, max(_FEWEST_USEFUL, useful / counts.queries)) if useful and counts.queries else 0.99


def summed(windows: Iterable[Window]) -> Window:
    """Several windows, one after the other, as one."""
    all_of = tuple(windows)
    return Window(
        seconds=sum(one.seconds for one in all_of),
        counts=add(one.counts for one in all_of),
        asked=sum(one.asked for one in all_of),
        unanswered=sum(one.unanswered for one in all_of),
    )


def tuned(recipe: Recipe, settings: Settings) -> Recipe:
    """The recipe with tuned settings; one that is not known, or out of its bounds, is passed over."""
    values: dict[str, int | bool] = {}
    for name, text in settings:
        least, most = TUNABLE.get(name, (1, 0))
        if text.isascii() and text.isdecimal() and len(text) < 10 and least <= int(text) <= most:
            values[name] = bool(int(text)) if most == 1 else int(text)
    return replace(recipe, **values)  # type: ignore[arg-type]  # by the table above


def together(settings: Settings, more: Settings) -> Settings:
    """Settings with others over them."""
    return tuple(sorted({**dict(settings), **dict(more)}.items()))


def proposals(
    window: Window, recipe: Recipe, settings: Settings, text: str | None, *, refused: Collection[str] = ()
) -> tuple[DnsProposal, ...]:
    """What may be tuned now. ``refused``: names of what was taken back of late; ``text``: the present Corefile."""
    present = tuned(recipe, settings)
    found = (rule(window, present) for rule in _RULES)
    return tuple(
        one
        for one in found
        if one is not None and one.name not in refused and _is_ours(recipe, together(settings, one.settings), text)
    )


def _is_ours(recipe: Recipe, settings: Settings, text: str | None) -> bool:
    """Whether it would change the text, and nothing in it is a person's that says otherwise."""
    if text is None:
        return False
    try:
        merged = merge(tuned(recipe, settings), text)
        return merged.text != text and merged.unmet == merge(recipe, text).unmet
    except Broken:
        return False


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _capacity(window: Window, recipe: Recipe) -> DnsProposal | None:
    counts, now = window.counts, recipe.capacity or CAPACITY
    wanted = min(now * 2, TUNABLE["capacity"][1])
    if wanted == now or counts.fullest < _FULL * now or counts.evictions < window.seconds:
        return None
    return DnsProposal(
        name="cache-capacity",
        settings=(("capacity", str(wanted)),),
        evidence=f"the fullest cache holds {counts.fullest} of {now} answers and lets go of "
        f"{counts.evictions / window.seconds:.0f} a second",
        effect="fewer misses and upstream queries, for up to a kilobyte of memory for each answer",
    )


def _prefetch(window: Window, recipe: Recipe) -> DnsProposal | None:
    counts = window.counts
    share = _share(counts.hits, counts.hits + counts.misses)
    slowest = max((quantile(one, 0.99) for one in counts.upstreams.values()), default=0.0)
    if recipe.prefetch or counts.hits + counts.misses < FEWEST or share < 0.5 or slowest < _SLOW:
        return None
    return DnsProposal(
        name="cache-prefetch",
        settings=(("prefetch", "1"),),
        evidence=f"{share:.0%} of answers come from the cache, and an upstream's P99 is {slowest * 1000:.0f} ms",
        effect="names that are asked often are never waited for; some more upstream queries",
    )


def _serve_stale(window: Window, recipe: Recipe) -> DnsProposal | None:
    counts = window.counts
    share = _share(counts.by_rcode.get("SERVFAIL", 0), counts.queries)
    if recipe.serve_stale or not recipe.upstreams or counts.queries < FEWEST or share < 0.01 or not counts.unhealthy:
        return None
    return DnsProposal(
        name="serve-stale",
        settings=(("serve_stale", "1"),),
        evidence=f"{share:.1%} of answers are SERVFAIL, and {counts.unhealthy} checks of upstreams failed",
        effect="a name asked before is answered while upstreams fail, for an hour at most",
    )


def _denial_ttl(window: Window, recipe: Recipe) -> DnsProposal | None:
    counts, now = window.counts, recipe.denial_ttl or recipe.cache
    asked = sum(max(one.values(), default=0) for one in counts.upstreams.values())
    share = _share(counts.denied, asked)
    wanted = min(4 * now, 300)
    if wanted <= now or asked < FEWEST or share < 0.3:
        return None
    return DnsProposal(
        name="negative-ttl",
        settings=(("denial_ttl", str(wanted)),),
        evidence=f"{share:.0%} of {asked} upstream answers say that there is no such name",
        effect=f"they are kept for {wanted} s, not {now} s, where the zone allows it (RFC 2308); a new name may be "
        "missed for as long",
    )


def _autopath(window: Window, recipe: Recipe) -> DnsProposal | None:
    counts = window.counts
    share = _share(counts.by_rcode.get("NXDOMAIN", 0), counts.queries)
    if recipe.autopath or counts.queries < 5 * FEWEST or share < 0.4:
        return None
    return DnsProposal(
        name="autopath",
        settings=(("autopath", "1"),),
        evidence=f"{share:.0%} of {counts.queries} answers say that there is no such name, as search lists make it",
        effect="one query instead of up to five for a name outside of the pod's namespace",
    )


def _sequential(window: Window, recipe: Recipe) -> DnsProposal | None:
    if recipe.sequential or len(recipe.upstreams) < 2:
        return None
    medians = {
        to.rpartition(":")[0].strip("[]"): quantile(durations, 0.5)
        for to, durations in window.counts.upstreams.items()
        if max(durations.values(), default=0) >= FEWEST // 4
    }
    first, *others = (medians.get(str(upstream)) for upstream in recipe.upstreams)
    slow = [other for other in others if other is not None]
    if first is None or len(slow) < len(others) or min(slow) < _TWICE * first:
        return None
    return DnsProposal(
        name="forward-policy",
        settings=(("sequential", "1"),),
        evidence=f"half of the answers of {recipe.upstreams[0]} come within {first * 1000:.1f} ms, of the others "
        f"within {min(slow) * 1000:.1f} ms",
        effect="every name is asked of the quickest upstream, of the next ones only while it fails",
    )


_RULES: tuple[Callable[[Window, Recipe], DnsProposal | None], ...] = (
    _serve_stale,
    _capacity,
    _autopath,
    _denial_ttl,
    _sequential,
    _prefetch,
)
"""The most urgent first: of several, one is applied at a time."""
