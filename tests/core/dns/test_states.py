"""The Corefile through lists of states: settings and a person's lines come and go, and what the text ends up saying.

The oracle knows the present settings and the person's lines alone; the order of a Corefile's lines means nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_address
from random import Random

from services.dns.core.corefile import Recipe
from services.dns.core.decision import choose
from tests.core.states import Driver, every_order, follow

Key = tuple[str, str]
Plugin = tuple[str, frozenset[str]]
"""A line's words, and those within its braces."""

LINES = {
    "log": "    log\n",
    "hosts": "    hosts {\n        192.0.2.1 a.example.org # mine\n        fallthrough\n    }\n",
    "rewrite": '    rewrite name "a b" c\n',
    "stub": "    forward example.org 192.0.2.7\n",
    "upstream": "    forward . 192.0.2.9\n",
}
OURS = ("errors", "ready", "loop", "loadbalance")
"""Lines of ours that a person may take out."""


class Written(Driver[Key, str]):
    """A Corefile that a person edits, and that is then brought to what is chosen."""

    def __init__(self) -> None:
        self.settings: dict[str, str] = {}
        self.text, self.by_hand = "", False
        self.edits = 0
        self.flush()

    def put(self, key: Key, value: str | None) -> None:
        kind, name = key
        self.edits += 1
        if kind == "setting":
            self.settings.pop(name, None)
            if value is not None:
                self.settings[name] = value
        elif kind == "taken":
            self.text = self.text.replace(f"    {name}\n", "")
        elif (LINES[name] in self.text) != (value is not None):
            first, rest = self.text.split("\n", 1)
            if value is None:
                self.text = self.text.replace(LINES[name], "")
            elif self.edits % 2:
                self.text = f"{first}\n{LINES[name]}{rest}"
            else:
                self.text = f"{self.text.removesuffix('}' + chr(10))}{LINES[name]}}}\n"

    def flush(self) -> None:
        recipe = Recipe(
            upstreams=tuple(ip_address(text) for text in self.settings.get("upstreams", "").split()),
            ttl=int(self.settings.get("ttl", "30")),
            cache=int(self.settings.get("cache", "30")),
            autopath="autopath" in self.settings,
        )
        chosen = choose(recipe, self.text)
        self.text, self.by_hand = chosen.text, chosen.by_hand is not None
        assert choose(recipe, self.text).text == self.text, "what is as it should be stays"

    def settle(self) -> object:
        self.flush()
        return Counter(plugins(self.text)), self.by_hand


def plugins(text: str) -> Iterator[Plugin]:
    """Of a text with one server block."""
    lines = [line.partition("#")[0].split() for line in text.splitlines()]
    assert lines[0] == [".:53", "{"]
    assert lines[-1] == ["}"]
    name, options = "", set[str]()
    for words in lines[1:-1]:
        if words == ["}"]:
            yield name, frozenset(options)
            name, options = "", set()
        elif name:
            options.add(" ".join(words))
        elif words[-1:] == ["{"]:
            name = " ".join(words[:-1])
        elif words:
            yield " ".join(words), frozenset()


def asked_for(objects: dict[Key, str]) -> object:
    """What the settings ask for, the person's lines, and whether they are against each other."""
    settings = {name: value for (kind, name), value in objects.items() if kind == "setting"}
    upstreams = " ".join(f"[{one}]:53" if ":" in one else f"{one}:53" for one in settings.get("upstreams", "").split())
    own = ("line", "upstream") in objects
    found: Counter[Plugin] = Counter((name, frozenset[str]()) for name in OURS)
    found["health", frozenset({"lameduck 5s"})] += 1
    found["reload 10s 5s", frozenset()] += 1
    found["prometheus :9153", frozenset()] += 1
    answers = {"pods verified", f"ttl {settings.get('ttl', '30')}"}
    if upstreams:
        answers.add("fallthrough in-addr.arpa ip6.arpa")
        if not own:
            found[f"forward . {upstreams}", frozenset({"max_concurrent 1000"})] += 1
    if "autopath" in settings:
        found["autopath @kubernetes", frozenset()] += 1
    found["kubernetes cluster.local in-addr.arpa ip6.arpa", frozenset(answers)] += 1
    uncached = {"disable success cluster.local", "disable denial cluster.local"}
    found[f"cache {settings.get('cache', '30')}", frozenset(uncached)] += 1
    for kind, name in objects:
        if kind == "line":
            found.update(plugins(f".:53 {{\n{LINES[name]}}}\n"))
    return found, bool(upstreams) and own


def state(chance: Random) -> dict[Key, str]:
    objects: dict[Key, str] = {}
    choices = {
        "upstreams": ("10.0.0.53", "10.0.0.53 fd00::53"),
        "ttl": ("5", "60"),
        "cache": ("9", "300"),
        "autopath": ("on",),
    }
    for name, values in choices.items():
        if chance.random() < 0.6:
            objects["setting", name] = chance.choice(values)
    for name in LINES:
        if chance.random() < 0.4:
            objects["line", name] = "written"
    for name in OURS:
        if chance.random() < 0.3:
            objects["taken", name] = "out"
    return objects


@every_order(seeds=6)
def test_whatever_came_before_the_corefile_says_what_settings_and_person_say(expander: str, seed: int) -> None:
    chance = Random(seed)
    follow(Written, asked_for, [state(chance) for _ in range(3)], expander, seed)
