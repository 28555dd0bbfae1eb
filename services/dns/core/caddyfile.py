"""A Corefile's structure: server blocks, snippets, plugins and their options, each with its place in the text.

Owns the grammar (of caddy's ``caddyfile`` package, which CoreDNS reads its configuration with) and nothing of what
plugins mean. Every part knows the offsets that it stands at, so that whoever changes one keeps all others to the byte.
Promises linear time and bounded depth; refuses, with the line, what CoreDNS would refuse to load for its structure.

Source: github.com/coredns/caddy, caddyfile/lexer.go and parse.go.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

MAX_TEXT = 1 << 18
"""Characters of a Corefile."""
MAX_DEPTH = 8
_WORD = re.compile(r"[^\s#]+")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_BLANK = re.compile(r"(?:\s|#[^\n]*)+")
_VARIABLE = re.compile(r"\{\$[^}]*\}|\{%[^%]*%\}")
"""Stands for an environment variable."""


class Broken(ValueError):
    """A text that is no Corefile: names the line and the remedy."""

    def __init__(self, line: int, problem: str, remedy: str) -> None:
        super().__init__(f"line {line}: {problem}; {remedy}")
        self.line = line
        self.problem = problem
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Token:
    """A word. ``end`` is behind its last character."""

    text: str
    start: int
    end: int
    line: int
    last_line: int


@dataclass(frozen=True, slots=True)
class Body:
    """What stands between braces. ``open`` and ``close`` are the offsets of the braces."""

    open: int
    close: int
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Line:
    """A plugin with its arguments and options, an option, or an import."""

    words: tuple[Token, ...]
    body: Body | None = None

    @property
    def name(self) -> str:
        """The first word."""
        return self.words[0].text

    @property
    def args(self) -> tuple[str, ...]:
        """The words behind the first."""
        return tuple(word.text for word in self.words[1:])

    @property
    def end(self) -> int:
        """Offset behind the last character, closing brace included."""
        return self.body.close + 1 if self.body is not None else self.words[-1].end


@dataclass(frozen=True, slots=True)
class Block:
    """A server block, or a snippet. A block without braces goes on to the end of the text."""

    keys: tuple[str, ...]
    start: int
    lines: tuple[Line, ...]
    close: int
    """Offset of the closing brace, or of the end of the text."""
    is_braced: bool

    @property
    def snippet(self) -> str:
        """The name that it is imported by; empty for a server block."""
        only = self.keys[0] if len(self.keys) == 1 else ""
        return only[1:-1] if only.startswith("(") and only.endswith(")") else ""


@dataclass(frozen=True, slots=True)
class Corefile:
    """The parts of a text, in its order."""

    text: str
    blocks: tuple[Block, ...]
    imports: tuple[str, ...]
    """What is imported outside of every block."""

    @property
    def servers(self) -> tuple[Block, ...]:
        """Server blocks."""
        return tuple(block for block in self.blocks if not block.snippet)

    @property
    def snippets(self) -> dict[str, Block]:
        """Snippets by name."""
        return {block.snippet: block for block in self.blocks if block.snippet}


def parse(text: str) -> Corefile:
    """The parts of a Corefile; raises :class:`Broken`."""
    if len(text) > MAX_TEXT:
        raise Broken(1, f"a text of {len(text)} characters", f"at most {MAX_TEXT} are read")
    return _Parser(text).parse()


def tokens(text: str) -> Iterator[Token]:
    """Words in their order, comments left out; raises :class:`Broken`."""
    at, line = (1 if text.startswith("\ufeff") else 0), 1
    while at < len(text):
        blank = _BLANK.match(text, at)
        if blank is not None:
            line += text.count("\n", at, blank.end())
            at = blank.end()
            continue
        found = _QUOTED.match(text, at) if text[at] == '"' else _WORD.match(text, at)
        if found is None:
            raise Broken(line, "a quote that nothing ends", 'write a " at the end of the word')
        said = found[1].replace('\\"', '"') if text[at] == '"' else found[0]
        last = line + text.count("\n", at, found.end())
        yield Token(said, at, found.end(), line, last)
        at, line = found.end(), last


def is_variable(word: str) -> bool:
    """Whether environment variables say what stands there."""
    return _VARIABLE.search(word) is not None


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(tokens(text))
        self._at = 0

    def parse(self) -> Corefile:
        blocks: list[Block] = []
        imports: list[str] = []
        while (first := self._peek()) is not None:
            if first.text == "import":
                imports += self._line(0).args
            else:
                blocks.append(self._block())
        names = [block.snippet for block in blocks if block.snippet]
        for name in names:
            if names.count(name) > 1:
                raise Broken(1, f"two snippets called {name}", "give each a name of its own")
        return Corefile(self._text, tuple(blocks), tuple(imports))

    def _peek(self) -> Token | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def _is_brace(self, token: Token | None, brace: str) -> bool:
        # A quoted brace is one, too: caddy's lexer does not tell.
        return token is not None and token.text == brace

    def _block(self) -> Block:
        first = self._tokens[self._at]
        keys = self._keys()
        opened = self._peek()
        is_braced = opened is not None and self._is_brace(opened, "{")
        if is_braced:
            self._at += 1
        lines: list[Line] = []
        while (token := self._peek()) is not None and not self._is_brace(token, "}"):
            lines.append(self._line(0))
        close = len(self._text)
        if token is not None and not is_braced:
            raise Broken(token.line, "a } without a {", "write a { with a space before it, or take the } out")
        if is_braced:
            if token is None:
                raise Broken(first.line, f"the block {keys[0]} without an end", "write a } on a line of its own")
            close = token.start
            self._at += 1
        return Block(keys, first.start, tuple(lines), close, is_braced)

    def _keys(self) -> tuple[str, ...]:
        keys: list[str] = []
        more = True
        first = self._tokens[self._at]
        line = first.line
        while (token := self._peek()) is not None and token.text != "{" and (more or token.line == line):
            if re.search(r"[{}]", _VARIABLE.sub("", token.text)):
                raise Broken(token.line, f"{token.text!r} where a zone is expected", "write a space before the brace")
            more = token.text.endswith(",")
            keys.append(token.text.removesuffix(","))
            line = token.last_line
            self._at += 1
        if not keys:
            raise Broken(first.line, "a { without a zone before it", "name the zones that the block serves")
        if more:
            raise Broken(line, "a comma with no zone behind it", "name another zone, or take the comma out")
        return tuple(keys)

    def _line(self, depth: int) -> Line:
        """A line, and its body. What stands behind the body on its last line belongs to it."""
        first = self._tokens[self._at]
        if depth > MAX_DEPTH:
            raise Broken(first.line, f"braces more than {MAX_DEPTH} deep", "take some out")
        words: list[Token] = []
        body: Body | None = None
        line = first.line
        while (token := self._peek()) is not None and (token.line == line or (words and token.text == "{")):
            if token.text == "{" and not words:
                raise Broken(token.line, "a { without a plugin before it", "name the plugin on the same line")
            if token.text == "{":
                if body is not None:
                    raise Broken(token.line, "a second { on one line", "write each plugin on a line of its own")
                body = self._body(depth)
                line = self._tokens[self._at - 1].last_line
                continue
            if token.text == "}":
                if depth == 0:
                    raise Broken(token.line, "a } behind a word", "write it on a line of its own")
                break
            if body is not None:
                raise Broken(token.line, f"{token.text!r} behind a }}", "write it on a line of its own")
            if _VARIABLE.sub("", token.text).endswith("{"):
                raise Broken(token.line, f"{token.text!r} ends in a brace", "write a space before the brace")
            words.append(token)
            line = token.last_line
            self._at += 1
        return Line(tuple(words), body)

    def _body(self, depth: int) -> Body:
        opened = self._tokens[self._at]
        self._at += 1
        lines: list[Line] = []
        while (token := self._peek()) is not None and token.text != "}":
            lines.append(self._line(depth + 1))
        if token is None:
            raise Broken(opened.line, "a { that nothing ends", "write a } on a line of its own")
        self._at += 1
        return Body(opened.start, token.start, tuple(lines))
