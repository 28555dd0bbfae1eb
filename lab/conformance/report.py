"""Results of the stock suite's specs: how they are kept, and `docs/conformance.md` made of them.

`python -m lab.conformance.report FOLDER…` reads the `results.jsonl` of each folder (a later folder's word counts) and
writes everything below the line `## Summary` of the document anew: a table of counts, and a table for each group of
specs. The text above that line is people's. Promises one row a spec, what did not pass first, each with its reason.
Refuses a document without that line, and folders without results.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from lab.paths import SOURCE
from lab.topology import LabError

DOCUMENT = SOURCE / "docs/conformance.md"
SUMMARY = "## Summary\n"
GROUPS = (("[Conformance]", r"\[Conformance\]"), ("NetworkPolicy", r"Netpol|NetworkPolicy"), ("The others", r""))
"""Title → pattern; a spec belongs to the first that matches."""
OUTCOMES = ("passed", "failed", "skipped")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Outcome of one spec."""

    spec: str
    outcome: str
    """`passed`, `failed` or `skipped`."""
    seconds: float
    reason: str = ""


def done(results: Path) -> dict[str, Result]:
    """Results of an earlier run, by spec, the last word of each; a torn last line is left out."""
    earlier = {}
    if results.exists():
        for line in results.read_text().splitlines():
            try:
                result = Result(**json.loads(line))
            except (ValueError, TypeError):
                continue
            earlier[result.spec] = result
    return earlier


def note(results: Path, result: Result) -> None:
    """Append one result."""
    with results.open("a") as file:
        file.write(json.dumps(asdict(result)) + "\n")


def counts(outcomes: list[Result]) -> dict[str, int]:
    """How many passed, failed, were skipped."""
    return {word: sum(one.outcome == word for one in outcomes) for word in OUTCOMES}


def table(outcomes: list[Result]) -> str:
    """The results as a Markdown table, by outcome and name."""
    rows = sorted(outcomes, key=lambda result: (result.outcome != "failed", result.outcome != "skipped", result.spec))
    lines = [f"| {_name(row)} | {row.outcome} | {row.seconds:.0f} | {_cell(row.reason)} |" for row in rows]
    return "\n".join(["| spec | outcome | s | reason |", "|---|---|---|---|", *lines, ""])


def _name(row: Result) -> str:
    return _cell(row.spec.removeprefix("[sig-network] "))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def grouped(outcomes: list[Result]) -> dict[str, list[Result]]:
    """Results by the title of their group."""
    groups: dict[str, list[Result]] = {title: [] for title, _ in GROUPS}
    for one in outcomes:
        groups[next(title for title, pattern in GROUPS if re.search(pattern, one.spec))].append(one)
    return groups


def tables(outcomes: list[Result]) -> str:
    """The summary and a table for each group, as Markdown."""
    groups = {title: found for title, found in grouped(outcomes).items() if found}
    lines = ["| specs | passed | failed | skipped | minutes |", "|---|---|---|---|---|"]
    for title, found in [*groups.items(), ("all", outcomes)]:
        numbers = " | ".join(str(number) for number in counts(found).values())
        lines.append(f"| {title} | {numbers} | {sum(one.seconds for one in found) / 60:.0f} |")
    parts = [f"## {title}\n\n{table(found)}" for title, found in groups.items()]
    return "\n".join([SUMMARY, *lines, "", *parts])


def renewed(document: str, outcomes: list[Result]) -> str:
    """The document with its tables anew; raises `LabError`."""
    head, mark, _ = document.partition(SUMMARY)
    if not mark:
        raise LabError(f"the document has no line {SUMMARY.strip()!r}: put it where the tables shall begin")
    return head + tables(outcomes)


def main() -> int:
    """Write the document of the folders' results."""
    parser = argparse.ArgumentParser(prog="python -m lab.conformance.report", description=__doc__.split("\n", 1)[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="folders of runs, the oldest first")
    parser.add_argument("--document", type=Path, default=DOCUMENT)
    given = parser.parse_args()
    results: dict[str, Result] = {}
    for folder in given.folders:
        results.update(done(folder / "results.jsonl"))
    if not results:
        print("lab: no results in these folders: run `make e2e` first", file=sys.stderr)
        return 1
    try:
        given.document.write_text(renewed(given.document.read_text(), list(results.values())))
    except (LabError, OSError) as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    print(f"{len(results)} specs: {given.document}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
