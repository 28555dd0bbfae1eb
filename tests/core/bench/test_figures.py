"""What the benchmarks read off their programs, and how they compare. Nothing is timed here."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bench.first import agents, figures

SOURCE = Path(figures.__file__).parent
GOOD = '{"count":100,"failed":1,"seconds":0.5,"p50_us":7.25,"p99_us":30.00}\n'


def test_a_result_reads() -> None:
    read = figures.summary(GOOD)
    assert (read.count, read.failed, read.p50_us, read.p99_us) == (100, 1, 7.25, 30.0)


@pytest.mark.parametrize(
    "printed",
    [
        "",
        "connect: Connection refused",
        GOOD.replace('"failed":1', '"failed":2'),
        GOOD.replace('"count":100', '"count":0'),
        '{"count":1}',
    ],
)
def test_what_is_no_result_is_refused(printed: str) -> None:
    with pytest.raises(figures.Unreadable):
        figures.summary(printed)


@pytest.mark.parametrize("printed", ['{"failed":1,"wall_us":9,"us":[1,2]}', '{"failed":0,"wall_us":9,"us":[]}', "x"])
def test_a_run_that_failed_counts_for_nothing(printed: str) -> None:
    with pytest.raises(figures.Unreadable):
        figures.spawned(printed)


@pytest.mark.parametrize(
    ("values", "share", "is_"), [([3, 1, 2], 0.5, 2), ([1], 0.99, 1), (range(100), 0.99, 99), ([4, 1], 1.0, 4)]
)
def test_percentiles(values: list[float], share: float, is_: float) -> None:
    assert figures.percentile(list(values), share) == is_


def test_rounds_are_compared_one_by_one() -> None:
    found = figures.compare([1.0, 10.0, 3.0], [2.0, 20.0, 4.0])  # a slow second round: both sides met it
    assert (found.ratio, found.lowest, found.highest) == (0.5, 0.5, 0.75)
    assert (found.ours, found.peer) == (3.0, 4.0)
    assert found.text == "0.5 [0.5-0.75]"


@pytest.mark.parametrize(("ours", "peers"), [([], []), ([1.0], [1.0, 2.0])])
def test_missing_rounds_are_refused(ours: list[float], peers: list[float]) -> None:
    with pytest.raises(ValueError, match=r"rounds|argument"):
        figures.compare(ours, peers)


def test_a_table_is_markdown() -> None:
    assert figures.table(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_memory_and_cpu_of_a_process() -> None:
    read = agents.memory("5563-7ffe [rollup]\nRss:   2000 kB\nPss:   1000 kB\nPss_Dirty: 5 kB\n")
    assert (read.rss, read.pss) == (2.048, 1.024)
    with pytest.raises(ValueError, match="Rss"):
        agents.memory("nothing\n")
    assert agents.ticks("12 (a ) b) S 1 12 12 0 -1 4194560 9 0 0 0 41 23 0 0 20 0 8 0 55") == 64


def test_the_spawner_gives_each_run_its_line_and_reports_failures(tmp_path: Path) -> None:
    spawner, listed, said = tmp_path / "spawner", tmp_path / "table", tmp_path / "said"
    subprocess.run(["gcc", "-Wall", "-Werror", "-o", spawner, SOURCE / "spawner.c"], check=True, timeout=60)
    listed.write_text("MARK=one\nMARK=two\tOTHER=x\n")
    run = [str(spawner), str(listed), "2", "0", "/dev/null", str(said)]
    text = subprocess.run([*run, "/usr/bin/env"], capture_output=True, text=True, check=True, timeout=20).stdout
    assert len(figures.spawned(text).us) == 2
    assert {"MARK=one", "MARK=two", "OTHER=x"} <= set(said.read_text().split())
    text = subprocess.run([*run, "/bin/false"], capture_output=True, text=True, check=True, timeout=20).stdout
    with pytest.raises(figures.Unreadable, match="2 of 2"):
        figures.spawned(text)
