"""Our settings in a person's Corefile: the text with our lines as the settings ask for, and all else to the byte.

What a person adds (server blocks, plugins, options, arguments, imports, comments) stays. Each line that ``corefile``
asks for comes back when it is changed or taken out; one that carries our mark goes when no setting asks for it any
more. An upstream that a person wrote goes before the one of the settings. Where a block imports, what it lacks may
stand in what it imports: nothing is added there, since CoreDNS refuses many a plugin that stands twice. What is left as
it is against a setting is told (:attr:`Merged.unmet`).

Promises: the same text for the same input, and no change of a text that is as it should be. Raises ``caddyfile.Broken``
for a text whose structure CoreDNS would refuse: nothing is written over that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from services.dns.core.caddyfile import Block, Body, Corefile, Line, is_variable, parse
from services.dns.core.corefile import INDENT, MARK, ROOT, Args, Option, Plugin, Recipe, plugins, render

_ROOTS = frozenset(prefix + key for prefix in ("", "dns://") for key in (".", ROOT))
_OPTIONAL = ("autopath", "forward")
"""Plugins that a setting may take away again, and, below, options."""
_OPTIONAL_OPTIONS = {
    "cache": ("denial", "prefetch", "serve_stale", "success"),
    "forward": ("policy",),
    "kubernetes": ("fallthrough",),
}


@dataclass(frozen=True, slots=True)
class Merged:
    """The text as it should be."""

    text: str
    unmet: tuple[str, ...] = ()
    """Plugins that are not as the settings ask for, because of what a person wrote."""


def merge(recipe: Recipe, text: str) -> Merged:
    """The person's text with our settings; raises ``Broken``, and ``Unusable`` for the recipe."""
    wanted = plugins(recipe)
    corefile = parse(text)
    ours = _our_block(corefile, recipe.cluster_domain)
    if ours is None:
        # An import or a variable may be the block, and behind a block without braces there can be no other.
        variable = any(is_variable(key) for block in corefile.servers for key in block.keys)
        if corefile.imports or variable or not all(block.is_braced for block in corefile.blocks):
            return Merged(text, tuple(plugin.name for plugin in wanted))
        gap = "" if not text or text.endswith("\n") else "\n"
        return Merged(text + gap + render(recipe))
    edit = _Edit(corefile, ours)
    for plugin in wanted:
        edit.want(plugin)
    edit.remove_unwanted({plugin.name: plugin for plugin in wanted})
    return Merged(edit.text(), tuple(dict.fromkeys(edit.unmet)))


def _our_block(corefile: Corefile, domain: str) -> Block | None:
    """The server block that answers for the cluster, else the one that answers for everything."""
    for block in corefile.servers:
        if any(line.name == "kubernetes" and _has(line.args or block.keys, domain) for line in block.lines):
            return block
    return _root(corefile)


def _root(corefile: Corefile) -> Block | None:
    return next((block for block in corefile.servers if not _ROOTS.isdisjoint(block.keys)), None)


@dataclass(frozen=True, slots=True)
class _Splice:
    start: int
    end: int
    text: str


class _Edit:
    """Changes of one text, gathered and made at once."""

    def __init__(self, corefile: Corefile, ours: Block) -> None:
        self._corefile = corefile
        self._text = corefile.text
        self._ours = ours
        self._splices: list[_Splice] = []
        self._added: dict[int, list[str]] = {}
        """By offset of the closing brace."""
        self._positions: dict[int, tuple[Block | Body, str]] = {}
        self.unmet: list[str] = []

    # --- what there is ---

    def _block_of(self, plugin: Plugin) -> Block:
        return (_root(self._corefile) or self._ours) if plugin.name == "forward" else self._ours

    def _find(self, plugin: Plugin, block: Block) -> Line | None:
        """The line that is, or stands for, a plugin of ours."""
        named = [line for line in block.lines if line.name == plugin.name]
        if plugin.name == "forward":
            named = [line for line in named if line.args[:1] == (".",)]
            named.sort(key=lambda line: (not self._is_anothers(line, plugin), not self._is_marked(line)))
        if named or not plugin.everywhere:
            return named[0] if named else None
        return next((line for other in self._corefile.blocks for line in other.lines if line.name == plugin.name), None)

    def _imported(self, lines: Iterable[Line]) -> bool:
        return any(line.name == "import" for line in lines)

    def _is_marked(self, line: Line) -> bool:
        return self._behind(line).lstrip().startswith(MARK)

    def _is_anothers(self, line: Line, ours: Plugin | Option) -> bool:
        """Whether a person wrote it, with arguments of their own."""
        return not self._is_marked(line) and line.args != ours.args

    def _behind(self, line: Line) -> str:
        """What stands behind the line's words, up to the end of the line or of the comment."""
        return self._text[self._head_end(line) :].partition("\n")[0]

    def _head_end(self, line: Line) -> int:
        """Offset behind the last word, and behind the opening brace where it is on the same line."""
        end = line.words[-1].end
        if line.body is not None and "\n" not in self._text[end : line.body.open]:
            return line.body.open + 1
        return end

    # --- what is wanted ---

    def want(self, plugin: Plugin) -> None:
        """A plugin is there, with what is ours of its arguments and options."""
        block = self._block_of(plugin)
        line = self._find(plugin, block)
        if line is None:
            if self._imported(block.lines):
                self.unmet.append(plugin.name)
            else:
                self._add(block, plugin.lines())
            return
        if plugin.marked and not self._is_marked(line):
            if self._is_anothers(line, plugin):
                self.unmet.append(plugin.name)
                for other in block.lines:
                    if other.name == plugin.name and self._is_marked(other):
                        self._cut(other)
                return
            self._mark(line)
        self._set_args(line, plugin.args, plugin.kind)
        self._want_options(plugin, line)

    def _want_options(self, plugin: Plugin, line: Line) -> None:
        if line.body is None:
            if plugin.options:
                indent = self._indent_of(line)
                lines = (f"{indent}{INDENT}{option.text}" for option in plugin.options)
                end = line.words[-1].end
                self._splices.append(_Splice(end, end, "\n".join((" {", *lines, f"{indent}}}"))))
            return
        lacking = []
        for option in plugin.options:
            found = next((one for one in line.body.lines if _is(one, option)), None)
            if found is not None and option.marked and option.kind is Args.ALL and self._is_anothers(found, option):
                self.unmet.append(plugin.name)
            elif found is not None:
                self._set_args(found, option.args, option.kind)
            elif self._imported(line.body.lines):
                self.unmet.append(plugin.name)
            else:
                lacking.append(option.text)
        if lacking:
            self._add(line.body, lacking, self._indent_of(line))

    def _set_args(self, line: Line, args: tuple[str, ...], kind: Args) -> None:
        becomes = _becomes(line, args, kind)
        if becomes != line.args:
            start, end = line.words[0].end, line.words[-1].end
            self._splices.append(_Splice(start, end, "".join(f" {arg}" for arg in becomes)))

    def remove_unwanted(self, wanted: dict[str, Plugin]) -> None:
        """What carries our mark and no setting asks for."""
        for block in self._corefile.blocks:
            for line in block.lines:
                if line.name in _OPTIONAL and line.name not in wanted and self._is_marked(line):
                    self._cut(line)
                elif line.body is not None and line.name in _OPTIONAL_OPTIONS and line.name in wanted:
                    options = {option.name for option in wanted[line.name].options}
                    for option in line.body.lines:
                        gone = option.name in _OPTIONAL_OPTIONS[line.name] and option.name not in options
                        if gone and self._is_marked(option):
                            self._cut(option)

    # --- changes ---

    def _mark(self, line: Line) -> None:
        end = self._head_end(line)
        self._splices.append(_Splice(end, end, f" {MARK}"))

    def _cut(self, line: Line) -> None:
        """The line goes, with its mark, and with its line break where nothing else is on it."""
        start, end = line.words[0].start, line.end
        rest = self._text[end:].partition("\n")[0]
        end += len(rest) if line.body is None or rest.lstrip().startswith(MARK) else 0
        before = self._text.rfind("\n", 0, start) + 1
        if not self._text[before:start].strip() and self._text[end : end + 1] in ("\n", ""):
            start, end = before, min(end + 1, len(self._text))
        self._splices.append(_Splice(start, end, ""))

    def _add(self, parent: Block | Body, lines: Iterable[str], outer: str | None = None) -> None:
        if outer is None:
            outer = self._indent_at(parent.start) if isinstance(parent, Block) else ""
        self._positions[parent.close] = parent, outer
        self._added.setdefault(parent.close, []).extend(lines)

    def _additions(self) -> Iterator[_Splice]:
        for close, lines in self._added.items():
            parent, outer = self._positions[close]
            inner = self._indent_of(parent.lines[0]) if parent.lines else outer + INDENT
            written = "".join(f"{inner}{line}\n" for line in lines)
            before = self._text.rfind("\n", 0, close) + 1
            if isinstance(parent, Block) and not parent.is_braced:
                gap = "" if before == close else "\n"
                yield _Splice(close, close, gap + written)
            elif self._text[before:close].strip():
                yield _Splice(close, close, f"\n{written}{outer}")
            else:
                yield _Splice(before, before, written)

    def _indent_of(self, line: Line) -> str:
        return self._indent_at(line.words[0].start)

    def _indent_at(self, offset: int) -> str:
        start = self._text.rfind("\n", 0, offset) + 1
        blank = self._text[start:offset]
        return blank if not blank.strip() else blank[: len(blank) - len(blank.lstrip())]

    def text(self) -> str:
        """The text after all changes."""
        text = self._text
        splices = [*self._splices, *self._additions()]
        in_order = sorted(splices, key=lambda one: (one.start, one.end))
        for splice in in_order[::-1]:  # from the end; of two at one place the first comes to stand first
            text = text[: splice.start] + splice.text + text[splice.end :]
        return text


def _becomes(line: Line, args: tuple[str, ...], kind: Args) -> tuple[str, ...]:
    """A line's arguments, with ours."""
    has = line.args
    match kind:
        case Args.ALL:
            return args
        case Args.NUMBER:
            return args + (has[1:] if has and has[0].isdecimal() else has)
        case Args.ZONES if has or line.name != "fallthrough":  # which means every zone when it names none
            return has + tuple(zone for zone in args if not _has(has, zone))
        case _:
            return has


def _has(zones: Iterable[str], zone: str) -> bool:
    """Whether a zone is among others, whichever way it is written (RFC 4343; the root's dot at its end or not)."""
    return zone.rstrip(".").lower() in (one.rstrip(".").lower() for one in zones)


def _is(line: Line, option: Option) -> bool:
    return line.name == option.name and (not option.by_argument or line.args[:1] == option.args[:1])
