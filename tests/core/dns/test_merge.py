"""A Corefile that people write: what is theirs stays to the byte, what is ours comes back, what is broken is told."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.dns.core.caddyfile import MAX_DEPTH, MAX_TEXT, Broken, parse
from services.dns.core.corefile import Recipe, render
from services.dns.core.decision import choose
from services.dns.core.merge import merge

PLAIN = Recipe()
MORE = Recipe(upstreams=(ip_address("192.0.2.53"), ip_address("2001:db8::53")), autopath=True)
OURS = render(PLAIN)

# As the stock specs write it, "[sig-network] DNS configMap nameserver": indentation, missing plugins and all.
SPEC = """.:53 {
        health
        ready
        kubernetes cluster.local in-addr.arpa ip6.arpa {
           pods insecure
           fallthrough in-addr.arpa ip6.arpa
           ttl 30
        }
        forward . 10.244.1.5
    }"""
STUB_DOMAIN = """
     acme.local:53 {
       forward . 10.244.1.5
    }"""
SPEC_MERGED = """.:53 {
        health {
            lameduck 5s
        }
        ready
        kubernetes cluster.local in-addr.arpa ip6.arpa {
           pods verified
           fallthrough in-addr.arpa ip6.arpa
           ttl 30
        }
        forward . 10.244.1.5
        errors
        loop
        reload 10s 5s
        prometheus :9153
        cache 30 {
            disable success cluster.local
            disable denial cluster.local
        }
        loadbalance
    }"""


def merged(text: str, recipe: Recipe = PLAIN) -> str:
    """The merged text, which is as it should be: merging it again changes nothing."""
    once = merge(recipe, text)
    assert merge(recipe, once.text) == once
    return once.text


@pytest.mark.parametrize("more", ["", STUB_DOMAIN], ids=["forward", "stub domain"])
@pytest.mark.parametrize("recipe", [PLAIN, MORE], ids=["no upstream of ours", "upstreams of ours"])
def test_the_edits_of_the_stock_specs_stay(more: str, recipe: Recipe) -> None:
    """With upstreams in the settings, too: the one that was written by hand is in force, and that is told."""
    text = merged(SPEC + more, recipe)
    if recipe is PLAIN:
        assert text == SPEC_MERGED + more
    else:
        asked = "        autopath @kubernetes # airmesh\n"
        assert text == SPEC_MERGED.replace("        prometheus", asked + "        prometheus") + more
        assert merge(recipe, SPEC + more).unmet == ("forward",)
    assert merged(OURS, recipe) == merged(merged(OURS, recipe), recipe), "the spec puts back what it found"


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("    errors\n", ""),
        ("    loop\n", "    # no loop\n"),
        ("    ready\n", "    ready :8181\n"),
        ("    loadbalance\n", "    loadbalance round_robin\n"),
        ("    prometheus :9153\n", "    prometheus :9153\n    log . {\n        class denial # why\n    }\n"),
        ("            lameduck", "            lameduck"),
        ("        ttl 30\n", "        ttl 30\n        endpoint_pod_names\n"),
        ("        ttl 30\n", "        fallthrough\n        ttl 30\n"),
        ("cluster.local in-addr.arpa ip6.arpa {", "cluster.local in-addr.arpa ip6.arpa example.org {"),
        ("    cache 30 {\n", "    cache 30 {\n        prefetch 10 1m 10%\n"),
        (".:53 {", "# mine\n.:53 example.org:53 {"),
        (".:53 {", "dns://.:53 {"),
        (".:53 {", ".\n{"),
        ("    ready\n", "    hosts {\n        192.0.2.1 a.example.org\n        fallthrough\n    }\n    ready\n"),
        ("    ready\n", '    rewrite name "a b" c\n    ready\n    rewrite name {$FROM} {%TO%}\n'),
        (OURS, OURS + "acme.local {\n    forward . 192.0.2.1\n    health :9999\n}\n"),
        (OURS, "import /etc/coredns/custom/*.server\n" + OURS),
        (OURS, "(common) {\n    log\n}\n" + OURS + "a.org {\n    import common\n}\n"),
        ("    ready\n", "    ready\n    import custom/*.override\n"),
        ("    ready\n", "    ready\n    forward . 192.0.2.1\n"),
        ("    ready\n", "    ready\n    forward example.org 192.0.2.1\n"),
        ("    ready\n", "\tready\r\n"),
    ],
)
def test_what_a_person_adds_stays(ours: str, theirs: str) -> None:
    """What is ours and was taken out for it comes back, and nothing else is touched."""
    text = OURS.replace(ours, theirs)
    assert text != OURS or ours == theirs
    came_back = "" if theirs else ours
    removed = {"    # no loop\n": "    loop\n"}.get(theirs, came_back)
    assert merged(text) == text.removesuffix("}\n") + removed + "}\n" if removed else merged(text) == text
    assert merge(PLAIN, text).unmet == ()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("ttl 30", "ttl 31"),
        ("ttl 30", "ttl"),
        ("health {\n        lameduck 5s\n    }", "health"),
        ("cache 30 {\n        disable success cluster.local\n        disable denial cluster.local\n    }", "cache"),
        ("verified", "insecure"),
        ("lameduck 5s", "lameduck 0s"),
        ("reload 10s 5s", "reload"),
        ("cache 30 {", "cache {"),
        ("cache 30 {", "cache 9 {"),
        ("kubernetes cluster.local in-addr.arpa ip6.arpa", "kubernetes cluster.local in-addr.arpa"),
        ("disable denial cluster.local", "disable denial"),
        (":9153", ":9154"),
    ],
)
def test_what_is_ours_comes_back(ours: str, theirs: str) -> None:
    assert merged(OURS.replace(ours, theirs)) == OURS


@pytest.mark.parametrize("text", [OURS, SPEC, SPEC + STUB_DOMAIN, "# nothing yet", "", ".\nerrors", ". { }\n"])
def test_what_a_setting_asked_for_goes_with_it(text: str) -> None:
    before = merged(text)
    with_more = merged(before, MORE)
    assert "autopath @kubernetes" in with_more
    assert "fallthrough in-addr.arpa ip6.arpa" in with_more
    assert "forward . " in with_more
    assert merged(with_more) == before
    other = Recipe(upstreams=(ip_address("198.51.100.53"),))
    assert ("198.51.100.53" in merged(with_more, other)) == ("10.244.1.5" not in text)


def test_upstreams_of_before_the_mark_are_known_as_ours() -> None:
    unmarked = render(MORE).replace(" # airmesh", "")
    assert merged(unmarked, MORE).count(" # airmesh") == 2
    assert merged(merged(unmarked, MORE)).count("forward") == 0


@pytest.mark.parametrize("name", ["errors", "kubernetes", "cache", "forward"])
def test_what_may_stand_in_an_import_is_not_written_twice(name: str) -> None:
    """CoreDNS does not load a block with two of most plugins."""
    lines = parse(render(MORE)).servers[0].lines
    line = next(line for line in lines if line.name == name)
    text = render(MORE)
    without = text[: line.words[0].start] + "import custom/*.override" + text[line.end :]
    if name == "forward":
        without = without.replace(" # airmesh\n    cache", "\n    cache")
    assert merge(MORE, without).text == without
    by_hand = choose(MORE, without).by_hand
    assert by_hand is not None
    assert by_hand.reason == "CorefileByHand"
    assert name in by_hand.fault
    assert name in by_hand.remedy


def test_plugins_of_the_whole_server_are_not_written_twice() -> None:
    """Who splits the zones: health may listen once, kubernetes is where the cluster's domain is."""
    kubernetes = OURS.replace(".:53", "cluster.local:53").replace("    health {\n        lameduck 5s\n    }\n", "")
    rest = "\n. {\n    health\n    errors\n    forward . /etc/resolv.conf\n}\n"
    text = merged(kubernetes + rest)
    assert text == kubernetes + rest.replace("health\n", "health {\n        lameduck 5s\n    }\n")
    assert "forward . 192.0.2.53:53" not in merged(kubernetes + rest, MORE)
    forwarded = merged(kubernetes + rest.replace("    forward . /etc/resolv.conf\n", ""), MORE)
    assert [line.name for line in parse(forwarded).servers[1].lines] == ["health", "errors", "forward"]


BROKEN = [
    # text | line | part of the problem
    ("}", 1, "zone"),
    (". {\n", 1, "without an end"),
    (".:53{\n    errors\n}\n", 1, "zone"),
    (". {\n    errors }\n", 2, "}"),
    (". {\n    health{\n    }\n}\n", 2, "brace"),
    (". {\n    health {\n    }\n", 1, "without an end"),
    (". {\n    health {\n", 2, "nothing ends"),
    (". {\n}\n}\n", 3, "zone"),
    (".,\n", 1, "comma"),
    ("{\n}\n", 1, "zone"),
    (". {\n    {\n    }\n}\n", 2, "plugin"),
    ('. {\n    rewrite name "a\n}\n', 2, "quote"),
    (".\nerrors\n}\n", 3, "}"),
    ("(a) {\n}\n(a) {\n}\n", 1, "snippets"),
    (". {\n    health { } {\n    }\n}\n", 2, "second {"),
    (". {\n    health { } errors\n}\n", 2, "behind"),
    ("a {\n" + "    b {\n" * (MAX_DEPTH + 2), MAX_DEPTH + 3, "deep"),
    ("#" * (MAX_TEXT + 1), 1, "characters"),
]


@pytest.mark.parametrize(("text", "line", "part"), BROKEN)
def test_a_broken_text_is_reported_and_left_as_it_is(text: str, line: int, part: str) -> None:
    with pytest.raises(Broken) as caught:
        merge(PLAIN, text)
    assert caught.value.line == line
    assert part in caught.value.problem
    chosen = choose(PLAIN, text)
    assert (chosen.text, chosen.of) == (text, text)
    assert chosen.by_hand is not None
    assert chosen.by_hand.reason == "CorefileBroken"
    assert f"line {line} " in chosen.by_hand.fault
    assert len(chosen.by_hand.fault) < 600
    assert chosen.by_hand.remedy


def test_where_there_is_no_text_ours_is_written() -> None:
    assert choose(PLAIN, None).text == OURS
    assert choose(PLAIN, None).of is None
    assert merged("") == OURS
    assert merged("example.org {\n    whoami\n}") == "example.org {\n    whoami\n}\n" + OURS
    for text in ("import servers/*", "example.org\nwhoami\n"):
        found = merge(PLAIN, text)
        assert (found.text, "kubernetes" in found.unmet) == (text, True)


WORDS = st.sampled_from(
    ["errors", "health", "kubernetes", "cluster.local", "cache", "30", "forward", ".", "import", "x", "# airmesh",
     "#", "{", "}", "\n", "\n", ".:53 {\n", "}\n", '"', "a,", "(s)", "fallthrough", "autopath @kubernetes # airmesh\n"]
)  # fmt: skip


@given(st.lists(WORDS, max_size=30).map(" ".join), st.sampled_from([PLAIN, MORE]))
def test_whatever_is_written_is_merged_once_or_broken(text: str, recipe: Recipe) -> None:
    try:
        parse(text)
    except Broken:
        assert choose(recipe, text).text == text
        return
    before, after = parse(text), parse(merged(text, recipe))
    kept = [block.keys for block in after.blocks]
    assert [block.keys for block in before.blocks] == kept[: len(before.blocks)]


@given(st.integers(0, len(OURS)), st.sampled_from(["x ", "# y\n", "\n", "{", "}", " "]))
def test_a_slip_of_the_hand_costs_nothing(at: int, slip: str) -> None:
    text = OURS[:at] + slip + OURS[at:]
    chosen = choose(PLAIN, text)
    if chosen.by_hand is not None and chosen.by_hand.reason == "CorefileBroken":
        assert chosen.text == text
    else:
        assert merged(chosen.text) == chosen.text
