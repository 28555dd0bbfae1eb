"""Selectors of nodes as Calico writes them (``rack == 'a' && !has(gpu)``), read into predicates on labels.

Owns the whole language but ``global()``, which is about namespaces: ``all()``, ``has(key)``, ``==``, ``!=``,
``in {…}``, ``not in {…}``, ``contains``, ``starts with``, ``ends with``, ``!``, ``&&``, ``||`` and brackets; ``&&``
binds tighter than ``||``. ``!=`` and ``not in`` hold for a label that is absent, the other comparisons do not. What is
not understood is refused, never guessed. Pools and BGP peers are selected by it.

Source: Calico's reference of selectors (libcalico-go/lib/selector).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

Labels = Mapping[str, str]
Matches = Callable[[Labels], bool]

MAX_SELECTOR = 4096
"""Characters."""
MAX_DEPTH = 32
"""Brackets and negations inside each other."""
_TOKEN = re.compile(
    r"\s*(?:(?P<sign>&&|\|\||==|!=|[!(){},])|'(?P<single>[^']*)'|\"(?P<double>[^\"]*)\"|(?P<word>[A-Za-z0-9_./-]{1,512}))"
)
_TWO_WORDS = {("not", "in"): "not in", ("starts", "with"): "starts with", ("ends", "with"): "ends with"}
_COMPARES: Mapping[str, Callable[[str, str], bool]] = {
    "==": lambda value, wanted: value == wanted,
    "contains": lambda value, wanted: wanted in value,
    "starts with": lambda value, wanted: value.startswith(wanted),
    "ends with": lambda value, wanted: value.endswith(wanted),
}


@dataclass(frozen=True, slots=True)
class _Token:
    """``kind`` is the sign itself, ``word``, ``text`` (in quotes) or ``end``."""

    kind: str
    value: str
    position: int


class _Unreadable(Exception):
    """``position``: where reading ended."""

    def __init__(self, position: int) -> None:
        super().__init__()
        self.position = position


@lru_cache(maxsize=256)
def parse_selector(text: str) -> Matches | str:
    """A selector as a predicate on labels, or what is wrong with it as the end of a sentence, with its remedy. An empty
    one selects every node. The same text is read once, however many nodes it is asked of.
    """
    if len(text) > MAX_SELECTOR:
        return f"is {len(text)} characters long; at most {MAX_SELECTOR} are read"
    if not text.strip():
        return _everything
    try:
        return _Reader(_tokens(text)).whole()
    except _Unreadable as wrong:
        return (
            f"{text!r} is not understood at {text[wrong.position :].strip()[:40]!r}; use all(), has(key), "
            "key == 'value', key in {'a', 'b'}, key contains 'value', key starts with 'value', !, &&, || and ( )"
        )


def _everything(_: Labels) -> bool:
    return True


def _tokens(text: str) -> list[_Token]:
    found: list[_Token] = []
    position, end = 0, len(text.rstrip())
    while position < end:
        match = _TOKEN.match(text, position, end)
        if match is None:
            raise _Unreadable(position)
        kind = match.lastgroup or ""
        value = match[kind]
        found.append(_Token({"sign": value, "word": "word"}.get(kind, "text"), value, position))
        position = match.end()
    found.append(_Token("end", "", end))
    return found


@dataclass(slots=True)
class _Reader:
    """Recursive descent over the tokens, one function for each level of the grammar."""

    tokens: list[_Token]
    at: int = 0
    depth: int = field(default=0, init=False)

    def whole(self) -> Matches:
        matches = self._either()
        self._expect("end")
        return matches

    def _either(self) -> Matches:
        terms = [self._both()]
        while self._accept("||"):
            terms.append(self._both())
        return terms[0] if len(terms) == 1 else lambda labels: any(term(labels) for term in terms)

    def _both(self) -> Matches:
        terms = [self._term()]
        while self._accept("&&"):
            terms.append(self._term())
        return terms[0] if len(terms) == 1 else lambda labels: all(term(labels) for term in terms)

    def _term(self) -> Matches:
        token = self._next()
        if token.kind in ("!", "("):
            self.depth += 1
            if self.depth > MAX_DEPTH:
                raise _Unreadable(token.position)
            inner = self._term() if token.kind == "!" else self._either()
            if token.kind == "(":
                self._expect(")")
            self.depth -= 1
            return inner if token.kind == "(" else lambda labels: not inner(labels)
        if token.kind != "word":
            raise _Unreadable(token.position)
        if token.value in ("all", "has") and self._accept("("):
            key = self._expect("word").value if token.value == "has" else ""
            self._expect(")")
            return _everything if token.value == "all" else lambda labels: key in labels
        return self._comparison(token.value)

    def _comparison(self, key: str) -> Matches:
        operator = self._operator()
        if operator in ("in", "not in"):
            values = self._values()
            return lambda labels: (labels.get(key) in values) is (operator == "in")
        wanted = self._expect("text").value
        if operator == "!=":
            return lambda labels: labels.get(key) != wanted
        compare = _COMPARES[operator]
        return lambda labels: key in labels and compare(labels[key], wanted)

    def _operator(self) -> str:
        token = self._next()
        if token.kind in ("==", "!=") or (token.kind == "word" and token.value in ("in", "contains")):
            return token.value
        pair = _TWO_WORDS.get((token.value, self.tokens[self.at].value)) if token.kind == "word" else None
        if pair is None:
            raise _Unreadable(token.position)
        self._expect("word")
        return pair

    def _values(self) -> frozenset[str | None]:
        self._expect("{")
        values: set[str | None] = set()
        while not self._accept("}"):
            values.add(self._expect("text").value)
            if not self._accept(","):
                self._expect("}")
                break
        return frozenset(values)

    def _next(self) -> _Token:
        token = self.tokens[self.at]
        self.at = min(self.at + 1, len(self.tokens) - 1)
        return token

    def _accept(self, kind: str) -> bool:
        found = self.tokens[self.at].kind == kind
        self.at += found
        return found

    def _expect(self, kind: str) -> _Token:
        token = self._next()
        if token.kind != kind:
            raise _Unreadable(token.position)
        return token
