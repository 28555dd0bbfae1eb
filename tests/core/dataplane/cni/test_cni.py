"""The CNI contract as tables: verbs × versions × what a runtime may get wrong (specification 1.1.0)."""

from __future__ import annotations

import random
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any

import msgspec
import pytest

from services.dataplane.core.attachment import Attachment
from services.dataplane.core.cni.request import CniError, Code, Request, Verb, parse, split_frame
from services.dataplane.core.cni.result import Attached, missing, render, render_error, render_versions

ENV = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c0ffee",
    "CNI_IFNAME": "eth0",
    "CNI_NETNS": "/run/netns/cni-1",
    "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=front-0;K8S_POD_UID=11-22",
    "CNI_PATH": "/opt/cni/bin",
}
CONF = {"cniVersion": "1.0.0", "name": "airmesh", "type": "airmesh-cni"}
VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")


def call(verb: str, env: Mapping[str, str | None] | None = None, **conf: Any) -> Request:
    environment = {**ENV, "CNI_COMMAND": verb, **(env or {})}
    document = {key: value for key, value in {**CONF, **conf}.items() if value is not ...}
    return parse({k: v for k, v in environment.items() if v is not None}, msgspec.json.encode(document))


def refused(verb: str, env: dict[str, str | None] | None = None, **conf: object) -> CniError:
    with pytest.raises(CniError) as caught:
        call(verb, env, **conf)
    return caught.value


@pytest.mark.parametrize(
    ("verb", "version", "spoken"),
    [(verb, version, True) for verb in ("ADD", "DEL") for version in VERSIONS]
    + [("CHECK", version, version != "0.3.1") for version in VERSIONS]
    + [(verb, version, version == "1.1.0") for verb in ("GC", "STATUS") for version in VERSIONS]
    + [
        (verb, version, False) for verb in ("ADD", "DEL", "CHECK", "GC") for version in ("0.1.0", "0.2.0", "2.0.0", "x")
    ],
)
def test_which_version_has_which_verb(verb: str, version: str, spoken: bool) -> None:
    if spoken:
        assert call(verb, cniVersion=version, prevResult={}).verb is Verb(verb)
    else:
        error = refused(verb, cniVersion=version, prevResult={})
        assert error.code is Code.INCOMPATIBLE_VERSION
        assert version in error.message


@pytest.mark.parametrize("version", [*VERSIONS, "0.1.0", "9.9.9"])
def test_version_is_answered_whatever_is_spoken(version: str) -> None:
    assert call("VERSION", cniVersion=version, name=...).verb is Verb.VERSION
    answer = msgspec.json.decode(render_versions(version))
    assert answer == {"cniVersion": version, "supportedVersions": list(VERSIONS)}


def test_a_configuration_without_a_version_is_an_old_one() -> None:
    assert call("ADD", cniVersion=...).version == "0.3.1"


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ({"CNI_COMMAND": None}, "CNI_COMMAND"),
        ({"CNI_COMMAND": "add"}, "CNI_COMMAND"),
        ({"CNI_COMMAND": "ADD "}, "CNI_COMMAND"),
        ({"CNI_CONTAINERID": None}, "CNI_CONTAINERID"),
        ({"CNI_CONTAINERID": ""}, "CNI_CONTAINERID"),
        ({"CNI_CONTAINERID": "../../etc"}, "CNI_CONTAINERID"),
        ({"CNI_CONTAINERID": "-c"}, "CNI_CONTAINERID"),
        ({"CNI_CONTAINERID": ".c"}, "CNI_CONTAINERID"),
        ({"CNI_CONTAINERID": "a>"}, "CNI_CONTAINERID"),
        ({"CNI_CONTAINERID": "a*"}, "CNI_CONTAINERID"),
        ({"CNI_CONTAINERID": "a b"}, "CNI_CONTAINERID"),
        ({"CNI_CONTAINERID": "a\n"}, "CNI_CONTAINERID"),
        ({"CNI_CONTAINERID": "c" * 129}, "CNI_CONTAINERID"),
        ({"CNI_IFNAME": None}, "CNI_IFNAME"),
        ({"CNI_IFNAME": ""}, "CNI_IFNAME"),
        ({"CNI_IFNAME": "."}, "CNI_IFNAME"),
        ({"CNI_IFNAME": ".."}, "CNI_IFNAME"),
        ({"CNI_IFNAME": "a/b"}, "CNI_IFNAME"),
        ({"CNI_IFNAME": "a:b"}, "CNI_IFNAME"),
        ({"CNI_IFNAME": "a b"}, "CNI_IFNAME"),
        ({"CNI_IFNAME": "a\tb"}, "CNI_IFNAME"),
        ({"CNI_IFNAME": "sixteencharacter"}, "CNI_IFNAME"),
        ({"CNI_IFNAME": "ethö"}, "CNI_IFNAME"),
        ({"CNI_NETNS": None}, "CNI_NETNS"),
        ({"CNI_NETNS": "relative"}, "CNI_NETNS"),
        ({"CNI_NETNS": "/run/../etc/passwd"}, "CNI_NETNS"),
        ({"CNI_NETNS": "/run/\x00x"}, "CNI_NETNS"),
        ({"CNI_NETNS": "/" + "n" * 2000}, "CNI_NETNS"),
        ({"CNI_ARGS": None}, "K8S_POD_NAMESPACE"),
        ({"CNI_ARGS": "K8S_POD_NAMESPACE=shop"}, "K8S_POD_NAME"),
        ({"CNI_ARGS": "K8S_POD_NAMESPACE=Shop;K8S_POD_NAME=a"}, "K8S_POD_NAMESPACE"),
        ({"CNI_ARGS": "K8S_POD_NAMESPACE=a.b;K8S_POD_NAME=a"}, "K8S_POD_NAMESPACE"),
        ({"CNI_ARGS": "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=../x"}, "K8S_POD_NAME"),
        ({"CNI_ARGS": "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=a;K8S_POD_UID=*"}, "K8S_POD_UID"),
    ],
)
def test_a_bad_environment_is_code_4_and_names_the_variable(env: dict[str, str | None], named: str) -> None:
    error = refused("ADD", env)
    assert error.code is Code.BAD_ENVIRONMENT
    assert named in error.message


@pytest.mark.parametrize(
    ("verb", "conf", "code", "named"),
    [
        ("ADD", {"name": ...}, Code.BAD_CONFIG, "name"),
        ("ADD", {"name": 7}, Code.BAD_CONFIG, "name"),
        ("ADD", {"name": "a/b"}, Code.BAD_CONFIG, "name"),
        ("ADD", {"name": "n" * 300}, Code.BAD_CONFIG, "name"),
        ("ADD", {"cniVersion": 1}, Code.BAD_CONFIG, "cniVersion"),
        ("ADD", {"cniVersion": None}, Code.BAD_CONFIG, "cniVersion"),
        ("ADD", {"prevResult": []}, Code.BAD_CONFIG, "prevResult"),
        ("DEL", {"prevResult": "x"}, Code.BAD_CONFIG, "prevResult"),
        ("CHECK", {}, Code.BAD_CONFIG, "prevResult"),
        ("GC", {"cniVersion": "1.1.0", "cni.dev/valid-attachments": {}}, Code.BAD_CONFIG, "valid-attachments"),
        ("GC", {"cniVersion": "1.1.0", "cni.dev/valid-attachments": [1]}, Code.BAD_CONFIG, "[0].containerID"),
        (
            "GC",
            {"cniVersion": "1.1.0", "cni.dev/valid-attachments": [{"containerID": "a", "ifname": ".."}]},
            Code.BAD_CONFIG,
            "[0].ifname",
        ),
    ],
)
def test_a_bad_configuration_names_the_field(verb: str, conf: dict[str, object], code: Code, named: str) -> None:
    error = refused(verb, None, **conf)
    assert error.code is code
    assert named in error.message


@pytest.mark.parametrize("stdin", [b"", b"{", b"[]", b"1", b'"x"', b"\xff\xfe", b"null", b"[" * 60_000, b" " * 70_000])
def test_stdin_that_is_no_configuration_is_code_6(stdin: bytes) -> None:
    with pytest.raises(CniError) as caught:
        parse(ENV, stdin)
    assert caught.value.code is Code.DECODE


@pytest.mark.parametrize("netns", [None, "", "relative", "/run/netns/gone", "/a/../b"])
def test_del_needs_no_namespace_and_no_pod(netns: str | None) -> None:
    request = call("DEL", {"CNI_NETNS": netns, "CNI_ARGS": None})
    assert request.attachment == Attachment("c0ffee", "eth0")


def test_gc_reads_both_spellings_and_knows_no_list_from_an_empty_one() -> None:
    listed = [{"containerID": "a", "ifname": "eth0"}]
    assert call("GC", cniVersion="1.1.0").valid is None
    new: dict[str, Any] = {"cni.dev/valid-attachments": []}
    old: dict[str, Any] = {"cni.dev/attachments": listed}
    assert call("GC", cniVersion="1.1.0", **new).valid == ()
    assert call("GC", cniVersion="1.1.0", **old).valid == (Attachment("a", "eth0"),)


def test_an_add_names_its_pod() -> None:
    pod = call("ADD").pod
    assert pod is not None
    assert (pod.namespace, pod.name, pod.uid) == ("shop", "front-0", "11-22")
    without = call("ADD", {"CNI_ARGS": "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=front-0"}).pod
    assert without is not None
    assert without.uid == ""


MADE = Attached(
    host_interface="am0011223344",
    host_mac=b"\x02am\0\0\1",
    interface="eth0",
    mac=b"\x02\1\2\3\4\5",
    netns="/run/netns/cni-1",
    addresses=(ip_address("10.244.0.5"), ip_address("fd00:10:244::5")),
    mtu=1500,
)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_result_in_each_version(version: str) -> None:
    answer = msgspec.json.decode(render(call("ADD", cniVersion=version), MADE))
    four, six = answer["ips"]
    assert answer["cniVersion"] == version
    assert four["address"] == "10.244.0.5/32"
    assert six["gateway"] == "fe80::1"
    assert four["interface"] == six["interface"] == 1
    assert ("version" in four) == version.startswith("0.")
    assert six.get("version", "6") == "6"
    assert answer["interfaces"][1] == {
        "name": "eth0",
        "mac": "02:01:02:03:04:05",
        "sandbox": "/run/netns/cni-1",
    } | ({"mtu": 1500} if version == "1.1.0" else {})
    assert [route["dst"] for route in answer["routes"]] == ["0.0.0.0/0", "::/0"]
    assert answer["dns"] == {}


def test_a_chain_keeps_what_came_before() -> None:
    before = {"interfaces": [{"name": "x"}], "ips": [{"address": "1.1.1.1/32"}], "dns": {"nameservers": ["1.1.1.1"]}}
    answer = msgspec.json.decode(render(call("ADD", prevResult=before), MADE))
    assert [entry["name"] for entry in answer["interfaces"]] == ["x", "am0011223344", "eth0"]
    assert [entry.get("interface") for entry in answer["ips"]] == [None, 2, 2]
    assert answer["dns"] == {"nameservers": ["1.1.1.1"]}
    with pytest.raises(CniError, match="interfaces"):
        render(call("ADD", prevResult={"interfaces": 1}), MADE)


@pytest.mark.parametrize("version", VERSIONS)
def test_check_agrees_with_what_add_answered_and_with_nothing_else(version: str) -> None:
    good = msgspec.json.decode(render(call("ADD", cniVersion=version), MADE))
    assert missing(good, MADE) == ""
    assert "10.244.0.5/32" in missing({**good, "ips": good["ips"][1:]}, MADE)
    assert "eth0" in missing({**good, "interfaces": good["interfaces"][:1]}, MADE)
    wrong = [good["interfaces"][0], {**good["interfaces"][1], "mac": "02:00:00:00:00:99"}]
    assert "MAC" in missing({**good, "interfaces": wrong}, MADE)
    assert missing({}, MADE)


def test_an_error_is_the_specification_s_object() -> None:
    error = CniError(Code.TRY_AGAIN_LATER, "wait", "why", version="0.4.0")
    assert msgspec.json.decode(render_error(error)) == {
        "cniVersion": "0.4.0",
        "code": 11,
        "msg": "wait",
        "details": "why",
    }


def test_the_frame() -> None:
    assert split_frame(b"CNI_COMMAND=ADD\0CNI_ARGS=a=b;c\0\0{}") == ({"CNI_COMMAND": "ADD", "CNI_ARGS": "a=b;c"}, b"{}")
    assert split_frame(b"\0") == ({}, b"")
    for broken in (b"", b"CNI_COMMAND=ADD", b"CNI_COMMAND=ADD\0x"):
        with pytest.raises(CniError):
            split_frame(broken)


def _mutate(chance: random.Random, raw: bytes) -> bytes:
    mutated = bytearray(raw)
    for _ in range(chance.randrange(1, 6)):
        at = chance.randrange(len(mutated) + 1)
        match chance.randrange(5):
            case 0:
                mutated[at:at] = bytes([chance.randrange(256)])
            case 1:
                del mutated[at : at + chance.randrange(1, 9)]
            case 2:
                mutated[at:at] = mutated[max(0, at - 20) : at] * chance.randrange(1, 4)
            case 3:
                mutated[at:at] = chance.choice([b"..", b"/", b"\0", b"[" * 50, b"{}", b"1e999", b"\\u0000", b">", b"*"])
            case _:
                if at < len(mutated):
                    mutated[at] = chance.randrange(256)
    return bytes(mutated)


def _outcome(frame: bytes) -> Request | CniError:
    try:
        return parse(*split_frame(frame))
    except CniError as error:
        return error


def test_five_thousand_mutated_calls_give_a_request_or_one_clear_refusal() -> None:
    chance = random.Random(187)
    full = {
        **CONF,
        "cniVersion": "1.1.0",
        "prevResult": {"ips": []},
        "cni.dev/valid-attachments": [{"containerID": "a"}],
    }
    refusals = 0
    for _ in range(5000):
        environment = {**ENV, "CNI_COMMAND": chance.choice([verb.value for verb in Verb])}
        frame = b"".join(f"{key}={value}".encode() + b"\0" for key, value in environment.items())
        frame = _mutate(chance, frame + b"\0" + msgspec.json.encode(full))
        outcome = _outcome(frame)
        if isinstance(outcome, CniError):
            refusals += 1
            assert outcome.code in {1, 4, 6, 7}
            assert outcome.message
            assert msgspec.json.decode(render_error(outcome))["code"] == outcome.code
        else:
            assert "/" not in outcome.attachment.container
            assert not outcome.attachment.container.startswith(".")
            assert ".." not in outcome.netns.split("/")
    assert refusals > 2000
