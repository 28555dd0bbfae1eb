"""Corefiles that installers write and ten thousand that people might: none loses a plugin, an option or a comment."""

from __future__ import annotations

import re
from collections import Counter
from ipaddress import ip_address
from pathlib import Path

import pytest

from services.dns.core.caddyfile import Block, Line, parse, tokens
from services.dns.core.corefile import Recipe, plugins
from services.dns.core.merge import merge
from tests.core.dns.generated import corefile

FORMS = sorted((Path(__file__).parent / "corefiles").glob("*.Corefile"))
RECIPES = (Recipe(), Recipe(upstreams=(ip_address("192.0.2.53"),), autopath=True, ttl=5, cache=60))
OURS = {plugin.name: {option.name for option in plugin.options} for plugin in plugins(RECIPES[1])}
_COMMENT = re.compile(r"(?:^|\s)(#[^\n]*)")


def _lines(block: Block | Line) -> tuple[Line, ...]:
    return block.lines if isinstance(block, Block) else block.body.lines if block.body is not None else ()


def _same_but_ours(before: Line, after: Line) -> None:
    """What is not ours of a plugin: options by their words, ours by their names."""
    ours = OURS.get(before.name)
    if ours is None:
        assert (before.name, before.args) == (after.name, after.args)
    theirs = Counter((one.name, one.args) for one in _lines(before) if ours is None or one.name not in ours)
    assert theirs <= Counter((one.name, one.args) for one in _lines(after))
    named = Counter(one.name for one in _lines(before))
    assert named <= Counter(one.name for one in _lines(after))


def _nothing_is_dropped(text: str, recipe: Recipe) -> None:
    merged = merge(recipe, text)
    assert merge(recipe, merged.text) == merged
    before, after = parse(text), parse(merged.text)
    assert before.imports == after.imports
    assert [block.keys for block in before.blocks] == [block.keys for block in after.blocks][: len(before.blocks)]
    for old, new in zip(before.blocks, after.blocks, strict=False):
        assert [line.name for line in old.lines] == [line.name for line in new.lines][: len(old.lines)]
        for line, now in zip(old.lines, new.lines, strict=False):
            _same_but_ours(line, now)
    comments = Counter(_COMMENT.findall(_unquoted(text).replace("\r", "")))
    assert comments <= Counter(_COMMENT.findall(_unquoted(merged.text).replace("\r", ""))), "a comment is gone"


def _unquoted(text: str) -> str:
    """The text with no word that could look like a comment."""
    for token in reversed(list(tokens(text))):
        text = text[: token.start] + "w" + text[token.end :]
    return text


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.stem)
@pytest.mark.parametrize("recipe", RECIPES, ids=["plain", "more"])
def test_a_form_that_an_installer_writes_loses_nothing(form: Path, recipe: Recipe) -> None:
    _nothing_is_dropped(form.read_bytes().decode(), recipe)


def test_there_are_thirty_forms() -> None:
    assert len(FORMS) >= 30


LONG = [pytest.param(range(start, start + 990), marks=pytest.mark.slow) for start in range(100, 10_000, 990)]


@pytest.mark.parametrize("seeds", [range(100), *LONG], ids=str)
def test_a_generated_one_loses_nothing(seeds: range) -> None:
    for seed in seeds:
        _nothing_is_dropped(corefile(seed), RECIPES[seed % 2])
