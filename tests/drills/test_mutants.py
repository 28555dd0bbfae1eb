"""The drill with sown bugs: a few of them now, all behind ``slow``; and that it tells a catch from an accident."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.drills.mutants import Field, Outcome, Run, Unfit, judge, sow, sown_field
from tests.drills.mutations import MUTANTS, Mutant
from tests.house.tree import ROOT

BY_NAME = {mutant.name: mutant for mutant in MUTANTS}
QUICK = (
    "ignore-except",
    "claim-re-held-while-its-holder-lives",
    "sweep-routes-before-in-sync",
    "absent-subject-allows",
)
UNSEEN = Mutant(
    name="a-bug-nobody-looks-for",
    file="services/dns/core/sizing.py",
    old="    most: int = 10\n",
    new="    most: int = 11\n",
    tests=("tests/core/kit/test_backoff.py",),
)


@pytest.fixture(scope="module")
def field() -> Iterator[Field]:
    with sown_field() as made:
        yield made


@pytest.mark.parametrize("name", [name for name in QUICK if not BY_NAME[name].file.endswith((".h", ".c"))])
def test_a_sown_bug_is_caught(field: Field, name: str) -> None:
    judged = field.judge(BY_NAME[name])
    assert judged.outcome is Outcome.CAUGHT, judged.why


@pytest.mark.privileged
@pytest.mark.parametrize("name", [name for name in QUICK if BY_NAME[name].file.endswith((".h", ".c"))])
def test_a_bug_sown_into_the_datapath_is_caught(field: Field, name: str) -> None:
    judged = field.judge(BY_NAME[name])
    assert judged.outcome is Outcome.CAUGHT, judged.why


@pytest.mark.slow
@pytest.mark.privileged
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutant", [mutant for mutant in MUTANTS if mutant.name not in QUICK], ids=lambda one: one.name)
def test_every_sown_bug_is_caught(field: Field, mutant: Mutant) -> None:
    judged = field.judge(mutant)
    assert judged.outcome is Outcome.CAUGHT, judged.why


def test_a_bug_that_no_test_looks_for_survives(field: Field) -> None:
    assert field.judge(UNSEEN).outcome is Outcome.SURVIVED


def test_a_bug_that_does_not_even_import_is_no_catch(field: Field) -> None:
    broken = replace(UNSEEN, new="    most: int = elsewhere\n", tests=("tests/core/dns/test_sizing.py",))
    judged = field.judge(broken)
    assert judged.outcome is Outcome.BROKEN
    assert "test_sizing" in judged.why


def test_every_mutant_can_be_sown_and_names_tests_that_are_there() -> None:
    for mutant in MUTANTS:
        text = (ROOT / mutant.file).read_text()
        assert text.count(mutant.old) == 1, f"{mutant.name}: its text is not in {mutant.file} exactly once"
        assert all((ROOT / test.partition("::")[0]).is_file() for test in mutant.tests), mutant.name
    assert len(BY_NAME) == len(MUTANTS) >= 16


def test_the_paper_lists_them_all_and_no_others() -> None:
    paper = (ROOT / "tests" / "README.md").read_text()
    listed = [
        line.split("|")[1].strip() for line in paper.partition("| bug |")[2].splitlines()[2:] if line.startswith("|")
    ]
    assert listed == [mutant.name for mutant in MUTANTS]


def test_a_text_that_has_moved_on_is_said(field: Field) -> None:
    with pytest.raises(Unfit, match=r"stands 0 times in services/dns/core/sizing\.py"):
        sow(replace(UNSEEN, old="most: int = 12"), field.clean)
    with pytest.raises(Unfit, match=r"there is no services/nowhere\.py"):
        sow(replace(UNSEEN, file="services/nowhere.py"), field.clean)


@pytest.mark.parametrize(
    ("run", "outcome"),
    [
        (Run(code=1, failures=(("t", "assert 1 == 2"),)), Outcome.CAUGHT),
        (Run(code=1, failures=(("t", "Failed: DID NOT RAISE <class 'ValueError'>"),)), Outcome.CAUGHT),
        (Run(code=1, failures=(("t", "TimeoutError"),)), Outcome.CAUGHT),
        (Run(code=1, failures=(("t", "NameError: name 'x' is not defined"),)), Outcome.BROKEN),
        (Run(code=1, errors=(("t", 'failed on setup with "AssertionError: …"'),)), Outcome.BROKEN),
        (Run(code=2, errors=(("t", "collection failure"),)), Outcome.BROKEN),
        (Run(code=0, passed=3), Outcome.SURVIVED),
        (Run(code=None), Outcome.BROKEN),
        (Run(code=5), Outcome.BROKEN),
    ],
    ids=str,
)
def test_what_counts_as_caught(run: Run, outcome: Outcome) -> None:
    assert judge(run).outcome is outcome
