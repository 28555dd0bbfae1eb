"""Corefiles as people might write them, from a seed: blocks, snippets, plugins with options, comments, any spacing.

Each is one that CoreDNS starts with: a plugin stands once in a block, and no two blocks serve the same zone and port.
Promises the same text for the same seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random

Options = Sequence[str]
_POOL: dict[str, tuple[tuple[str, ...], Options]] = {
    # plugin: its arguments, one of which is taken; options of which some are taken
    "errors": (("",), ("consolidate 5m \".* i/o timeout$\"", "stacktrace")),
    "log": (("", ".", "example.org"), ("class denial error", "class all")),
    "cache": (
        ("", "30", "600", "30 example.org", "0.0.0.0/0"),
        ("success 20000", "denial 5000 60 5", "prefetch 10 1m 10%", "serve_stale 1h", "servfail 5s"),
    ),
    "health": (("", ":8080", "127.0.0.1:8081"), ("lameduck 20s",)),
    "ready": (("", ":8181"), ()),
    "loop": (("",), ()),
    "reload": (("", "30s", "20s 5s"), ()),
    "loadbalance": (("", "round_robin"), ()),
    "prometheus": (("", ":9153", "0.0.0.0:9153", "localhost:9253"), ()),
    "bufsize": (("", "1232"), ()),
    "debug": (("",), ()),
    "metadata": (("",), ()),
    "hosts": (("", "/etc/hosts", "example.hosts example.org"), ("192.0.2.1 a.example.org b.example.org", "ttl 60",
                                                                "no_reverse", "fallthrough", "reload 1m")),
    "rewrite": (("name exact a.example.org b.example.org", 'name regex "(.*)[.]old" {1}.new answer auto',
                 "stop type ANY HINFO", "edns0 local set 0xffee 0x61"), ()),
    "template": (("ANY ANY", "IN A rack.example.org"), (r'match "^host-(?P<n>[0-9]+)[.]"', "rcode NXDOMAIN",
                                                       "fallthrough")),
    "forward": (
        (". /etc/resolv.conf", ". 192.0.2.9", ". 192.0.2.9 2001:db8::9", ". tls://192.0.2.9", ". 192.0.2.9:5353"),
        ("max_concurrent 500", "policy sequential", "prefer_udp", "max_fails 3", "expire 10s", "health_check 5s",
         "except internal.example.org"),
    ),
    "kubernetes": (
        ("cluster.local", "cluster.local in-addr.arpa ip6.arpa", "cluster.local. 10.0.0.0/8", "Cluster.local",
         "cluster.local east.example.org"),
        ("pods insecure", "endpoint_pod_names", "ttl 5", "fallthrough", "namespaces a b", "noendpoints"),
    ),
    "whoami": (("",), ()),
}  # fmt: skip
_KEYS = (".:53", ".", "dns://.:53", "cluster.local", "cluster.local:53", "example.org", "example.net:53", "10.0.0.0/24",
         "a.example.com, b.example.com", "test:1053", "in-addr.arpa", ".:5353")  # fmt: skip
_SERVED = {".:53": "root", ".": "root", "dns://.:53": "root", "cluster.local:53": "cluster.local"}
_ONCE = ("health", "kubernetes")
"""Of the whole text: a second one could want the same port, or another cluster."""
_COMMENTS = ("# a note", "#", "# { not a brace", "#airmesh is no mark", '# a "quote')


class _Writer:
    def __init__(self, random: Random) -> None:
        self._random = random
        self._space: Callable[[], str] = random.choice((lambda: " ", lambda: random.choice((" ", "  ", "\t"))))
        self._indent = random.choice(("    ", "\t", "  ", ""))
        self._taken: set[str] = set()

    def text(self) -> str:
        parts = list(self._parts())
        text = "".join(parts)
        if self._random.random() < 0.1:
            text = text.replace("\n", "\r\n")
        return text if self._random.random() < 0.8 else text.rstrip("\r\n")

    def _parts(self) -> Iterator[str]:
        random = self._random
        keys: list[str] = []
        for key in random.sample(_KEYS, random.randint(1, 5)):
            if _SERVED.get(key, key) not in {_SERVED.get(one, one) for one in keys}:
                keys.append(key)
        snippet = random.random() < 0.2
        if snippet:
            yield f"(common){self._space()}{{\n{self._indent}whoami\n}}\n"
        if len(keys) == 1 and not snippet and random.random() < 0.1:
            yield f"{keys[0]}\n{self._lines(False)}"
            return
        for key in keys:
            yield from ("\n" for _ in range(random.randint(0, 2)))
            yield f"{self._maybe_comment()}{key}{self._space()}{{{self._behind()}\n"
            yield self._lines(snippet and random.random() < 0.7)
            yield f"}}{self._behind()}\n"

    def _lines(self, imports: bool) -> str:
        random = self._random
        pool = [name for name in _POOL if name not in self._taken and not (imports and name == "whoami")]
        names = random.sample(pool, random.randint(1, min(9, len(pool))))
        lines = [self._plugin(name) for name in names]
        self._taken |= {name for name in names if name in _ONCE}
        if imports:
            lines.insert(random.randint(0, len(lines)), f"{self._indent}import common\n")
        return "".join(self._maybe_comment() + line for line in lines)

    def _plugin(self, name: str) -> str:
        random = self._random
        arguments, options = _POOL[name]
        words = [name, *random.choice(arguments).split(" ")] if any(arguments) else [name]
        head = self._indent + self._space().join(word for word in words if word)
        taken = random.sample(options, random.randint(0, len(options))) if name != "template" else list(options)
        taken.sort(key=lambda one: not one[0].isdigit())  # plugin/hosts takes addresses first
        if not taken:
            return f"{head}{self._behind()}\n"
        body = "".join(f"{self._maybe_comment()}{self._indent * 2}{one}{self._behind()}\n" for one in taken)
        return f"{head}{self._space()}{{{self._behind()}\n{body}{self._indent}}}{self._behind()}\n"

    def _behind(self) -> str:
        return f" {self._random.choice(_COMMENTS)}" if self._random.random() < 0.1 else ""

    def _maybe_comment(self) -> str:
        return f"{self._indent}{self._random.choice(_COMMENTS)}\n" if self._random.random() < 0.08 else ""


def corefile(seed: int) -> str:
    """A text that CoreDNS starts with."""
    return _Writer(Random(seed)).text()
