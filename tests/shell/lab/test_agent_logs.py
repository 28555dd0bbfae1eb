"""A failing test of a lab shows what the agents said since it began, each a few lines, and no more."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.agent_logs import CHARACTERS, LINES, lengths, warnings
from tests.house.tree import ROOT

CONFTEST = """
import pathlib, pytest
from tests.agent_logs import LOGS, pytest_runtest_makereport, pytest_runtest_setup

@pytest.fixture(scope="session")
def lab(request):
    request.session.stash[LOGS] = pathlib.Path(__file__).parent / "logs"

@pytest.fixture
def say():
    def write(name, text):
        with (pathlib.Path(__file__).parent / "logs" / f"{name}.log").open("a") as log:
            print(text, file=log)
    return write
"""

TESTS = """
import json

def line(event, level="warning"):
    return json.dumps({"level": level, "event": event})

def test_first(lab, say):
    say("dataplane-n1", line("while-the-first-ran"))
    say("dataplane-n1", line("a-decision", "info"))
    assert False

def test_second(lab, say):
    say("policy-1", line("while-the-second-ran", "error"))
    say("policy-1", "Traceback (most recent call last):")
    say("nats", "[1] 2026/01/01 [ERR] slow consumer")
    say("etcd", "not an agent")
    assert False

def test_well(lab, say):
    say("policy-1", line("nobody-asks"))

def test_without_a_lab(say):
    assert False

def test_breaks_at_its_end(lab, say, ending):
    say("dns", line("at-the-end"))
"""

ENDING = """
@pytest.fixture
def ending():
    yield
    raise RuntimeError("the namespace stays")
"""


def _line(event: str, level: str = "warning", **more: object) -> str:
    return json.dumps({"level": level, "event": event, **more}) + "\n"


def test_a_failures_report_has_the_warnings_since_the_test_began_and_no_others(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "ipam-1.log").write_text(_line("starting", "info"))
    (tmp_path / "conftest.py").write_text(CONFTEST + ENDING)
    (tmp_path / "test_lab.py").write_text(TESTS)
    argv = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        "/dev/null",
        "--tb=line",
        str(tmp_path),
    ]
    run = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert "3 failed, 2 passed, 1 error" in run.stdout, run.stdout + run.stderr
    pieces = run.stdout.split("the lab's agents since this test began")
    assert len(pieces) == 4, run.stdout
    last, first, second = (piece.partition("\n___")[0] for piece in pieces[1:])
    assert "while-the-first-ran" in first
    assert "a-decision" not in first
    assert "no warning, no error: ipam-1" in first
    assert "while-the-first-ran" not in second
    for word in ("while-the-second-ran", "Traceback", "slow consumer"):
        assert word in second
    assert "not an agent" not in second
    assert "at-the-end" in last
    assert "nobody-asks" not in run.stdout


def test_each_agent_has_its_last_lines_and_each_line_an_end(tmp_path: Path) -> None:
    log = tmp_path / "routing-n1.log"
    log.write_text("".join(_line(f"warning-{number}", text="x" * 2 * CHARACTERS) for number in range(LINES + 3)))
    lines = warnings(tmp_path, {}).splitlines()
    assert len(lines) == LINES + 1
    assert lines[-1] == "routing-n1: and 3 before these"
    assert "warning-3" in lines[0]
    assert f"warning-{LINES + 2}" in lines[-2]
    assert max(map(len, lines)) <= len("routing-n1: ") + CHARACTERS
    assert warnings(tmp_path, lengths(tmp_path)) == "no warning, no error: routing-n1"


def test_a_log_that_was_made_again_counts_whole_and_a_large_one_from_near_its_end(tmp_path: Path) -> None:
    log = tmp_path / "dns.log"
    log.write_text(_line("short"))
    assert "short" in warnings(tmp_path, {"dns": 10_000})
    log.write_text(_line("long-ago") + _line("info", "info") * 40_000 + _line("just-now"))
    assert log.stat().st_size > 1 << 20
    reported = warnings(tmp_path, {})
    assert "just-now" in reported
    assert "long-ago" not in reported


def test_an_exporter_that_nobody_listens_to_hides_nothing_else(tmp_path: Path) -> None:
    log = tmp_path / "policy-1.log"
    exporter = _line("library", "error", library="opentelemetry.exporter.otlp.proto.http.trace_exporter", message="no")
    other = _line("library", library="aiohttp.server", message="a request that breaks off")
    log.write_text(_line("first") + other + exporter * 2 * LINES)
    assert [line.partition('"event": ')[2][:9] for line in warnings(tmp_path, {}).splitlines()] == [
        '"first"}',
        '"library"',
    ]
    log.write_text(exporter)
    assert warnings(tmp_path, {}) == "no warning, no error: policy-1"
