"""`airmesh dns`: the desired CoreDNS configuration and size, why, and its recent latency and errors, by plugin: of all
queries (errors, kubernetes), of the cache, and of each upstream (forward).

Both are values of the `dns` bucket; quantiles are upper bounds of the histogram bucket that holds them.
"""

from __future__ import annotations

import msgspec

from cli.reports.table import Cell, Table, Tone, dim
from proto.dns import CoreDNSDecision, DnsReport


class DnsState(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer of `airmesh dns`; None where `dns` has not said anything yet."""

    decision: CoreDNSDecision | None
    report: DnsReport | None


def tables(state: DnsState) -> tuple[Table, ...]:
    """The decision, the counts, the Corefile."""
    shown = []
    if state.decision is None:
        shown.append(Table(title="CoreDNS", columns=(), rows=(), empty="dns has decided nothing yet"))
    else:
        shown.append(
            Table(
                title="CoreDNS",
                columns=("namespace", "replicas", "because"),
                rows=((state.decision.namespace, str(state.decision.replicas), state.decision.reason),),
            )
        )
    if state.report is not None:
        shown += counts(state.report)
    if state.decision is not None:
        lines = tuple((dim(line),) for line in state.decision.corefile.splitlines())
        shown.append(Table(title="Corefile", columns=("",), rows=lines))
    return tuple(shown)


def counts(report: DnsReport) -> tuple[Table, ...]:
    """What all servers answered, and what each upstream answered them, where they asked one."""
    upstreams = Table(
        title="Upstreams that CoreDNS asked",
        columns=("upstream", "answers", "P50 at most", "P99 at most"),
        rows=tuple(
            (one.address, str(one.answers), f"{one.p50_ms:.1f} ms", f"{one.p99_ms:.1f} ms") for one in report.upstreams
        ),
        empty="none answered",
        note=f"{report.upstream_checks_failed} checks failed" if report.upstream_checks_failed else "",
    )
    asked = report.upstreams or report.upstream_checks_failed
    return (_servers(report), upstreams) if asked else (_servers(report),)


def _servers(report: DnsReport) -> Table:
    asked = report.cache_hits + report.cache_misses
    hits = f"{100 * report.cache_hits / asked:.0f} %" if asked else "–"
    codes = ", ".join(f"{name} {count}" for name, count in report.answers_by_rcode) or "–"
    return Table(
        title=f"CoreDNS in the last {report.seconds:.0f} s",
        columns=("servers", "queries", "answers", "P50 at most", "P99 at most", "from cache"),
        rows=(
            (
                str(report.servers) if report.servers else Cell("none answered", Tone.BAD),
                str(report.queries),
                codes,
                f"{report.p50_ms:.1f} ms",
                f"{report.p99_ms:.1f} ms",
                hits,
            ),
        ),
    )
