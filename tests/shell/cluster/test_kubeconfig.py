"""A kubeconfig gives credentials, or one sentence that names the file, the field and the remedy."""

from __future__ import annotations

import base64
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chassis.faults import SettingsFault
from services.cluster import kubeconfig
from services.cluster.kubeconfig import MAX_FILE, Credentials, find, read

SERVER = "https://10.96.0.1:6443"


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and two clients' certificates with their keys."""
    folder = tmp_path_factory.mktemp("pems")
    for name in ("ca", "one", "two"):
        made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        made += ["-days", "1", "-subj", f"/CN={name}"]
        made += ["-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.crt")]
        subprocess.run(made, check=True, capture_output=True, timeout=20)
    return folder


def config(cluster: Any = None, user: Any = None, **more: Any) -> dict[str, Any]:
    return {
        "current-context": "lab",
        "contexts": [{"name": "lab", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": SERVER} if cluster is None else cluster}],
        "users": [{"name": "u", "user": {"token": "t"} if user is None else user}],
        **more,
    }


def written(folder: Path, what: Any) -> Path:
    path = folder / "kubeconfig"
    path.write_bytes(what if isinstance(what, bytes) else yaml.safe_dump(what).encode())
    return path


def refused(folder: Path, what: Any) -> str:
    path = written(folder, what)
    with pytest.raises(SettingsFault) as fault:
        read(path)
    said = str(fault.value)
    assert said.startswith(f"AIRMESH_KUBECONFIG = '{path}' cannot be used: ")
    return said.removeprefix(f"AIRMESH_KUBECONFIG = '{path}' cannot be used: ")


def test_files_beside_it_and_what_it_holds_are_the_same(tmp_path: Path, pems: Path) -> None:
    parts = {name: (pems / name).read_bytes() for name in ("ca.crt", "one.crt", "one.key")}
    for name, body in parts.items():
        (tmp_path / name).write_bytes(body)
    files = config(
        {"server": SERVER + "/", "certificate-authority": "ca.crt"},
        {"client-certificate": "one.crt", "client-key": str(tmp_path / "one.key")},
    )
    inline = config(
        {"server": SERVER, "certificate-authority-data": base64.b64encode(parts["ca.crt"]).decode()},
        {
            "client-certificate-data": base64.b64encode(parts["one.crt"]).decode(),
            "client-key-data": base64.b64encode(parts["one.key"]).decode(),
        },
    )
    found = read(written(tmp_path, files))
    assert found == read(written(tmp_path, inline))
    assert found.server == SERVER
    context = found.tls()
    assert isinstance(context, ssl.SSLContext)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert [ca["subject"] for ca in context.get_ca_certs()] == [((("commonName", "ca"),),)]
    assert found.headers() == {}


def test_the_context_in_use_is_chosen_and_without_one_the_first(tmp_path: Path) -> None:
    whole = config()
    whole["contexts"].insert(0, {"name": "other", "context": {"cluster": "d", "user": "u"}})
    whole["clusters"].append({"name": "d", "cluster": {"server": "https://other"}})
    assert read(written(tmp_path, whole)).server == SERVER
    for unset in ("", None):
        assert read(written(tmp_path, {**whole, "current-context": unset})).server == "https://other"


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "[::1]:8080", "localhost:8080", "127.8.8.8"])
def test_plain_http_is_for_loopback(tmp_path: Path, host: str) -> None:
    found = read(written(tmp_path, config({"server": f"http://{host}"})))
    assert found.tls() is True
    assert found.server == f"http://{host}"


@pytest.mark.parametrize(
    ("cluster", "said"),
    [
        ({"server": "http://10.0.0.1"}, "server http://10.0.0.1 is plain HTTP; use https"),
        ({"server": "http://localhost.example"}, "is plain HTTP; use https"),
        ({"server": "http://"}, "is plain HTTP; use https"),
        ({"server": "10.0.0.1:6443"}, "is no URL; write https://address:port"),
        ({"server": ""}, "is no URL; write https://address:port"),
        ({"server": "file:///etc/passwd"}, "is no URL; write https://address:port"),
        ({"server": "https://[::1"}, "Invalid IPv6 URL"),
        ({"server": SERVER, "insecure-skip-tls-verify": True}, "insecure-skip-tls-verify is refused"),
        ({}, "write a kubeconfig (KeyError: 'server')"),
        ([], "write a kubeconfig"),
        ({"server": SERVER, "certificate-authority": "absent.crt"}, "certificate-authority: No such file or directory"),
        ({"server": SERVER, "certificate-authority": "."}, "certificate-authority: Is a directory"),
        ({"server": SERVER, "certificate-authority-data": "!"}, "certificate-authority-data is not base64"),
        ({"server": SERVER, "certificate-authority-data": "aGVsbG8="}, "not PEM that belongs together"),
        ({"server": SERVER, "certificate-authority-data": "/w=="}, "not PEM that belongs together"),
        ({"server": SERVER, "certificate-authority-data": 7}, "write a kubeconfig (TypeError"),
    ],
)
def test_a_cluster_that_cannot_be_used_is_named(tmp_path: Path, cluster: Any, said: str) -> None:
    assert said in refused(tmp_path, config(cluster))


@pytest.mark.parametrize(
    ("user", "said"),
    [
        ({"exec": {"command": "aws"}}, "users[u].exec is not supported; use a client certificate or a token"),
        ({"auth-provider": {}}, "users[u].auth-provider is not supported"),
        ({"username": "admin", "password": "x"}, "users[u].username is not supported"),
        ({"client-certificate": "absent", "client-key": "absent"}, "client-certificate: No such file or directory"),
        ({"client-certificate-data": "aGVsbG8=", "client-key-data": "aGVsbG8="}, "not PEM that belongs together"),
        (7, "write a kubeconfig (TypeError"),
    ],
)
def test_a_user_that_cannot_be_used_is_named(tmp_path: Path, user: Any, said: str) -> None:
    assert said in refused(tmp_path, config(user=user))


def test_a_key_of_another_certificate_is_named_at_the_start(tmp_path: Path, pems: Path) -> None:
    user = {"client-certificate": str(pems / "one.crt"), "client-key": str(pems / "two.key")}
    assert "not PEM that belongs together" in refused(tmp_path, config(user=user))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"current-context": "absent"}, "contexts has no entry 'absent'; add it or choose another context"),
        ({"clusters": []}, "clusters has no entry 'c'"),
        ({"users": []}, "users has no entry 'u'"),
        ({"users": [{"name": "U", "user": {}}]}, "users has no entry 'u'"),
        ({"current-context": "", "contexts": []}, "write a kubeconfig (IndexError"),
        ({"contexts": [{"name": "lab"}]}, "write a kubeconfig (KeyError: 'context')"),
        ({"contexts": None}, "write a kubeconfig (TypeError"),
        ({"users": [{"user": {}}]}, "write a kubeconfig (KeyError: 'name')"),
    ],
)
def test_a_part_that_is_missing_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    assert said in refused(tmp_path, config(**change))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"7",
        b"text",
        b"{",
        b"a: b: c",
        b"\xff\xfe\xfa",
        b"a: &x [*x]",
        b"!!python/object:os.system {}",
    ],
)
def test_what_is_no_kubeconfig_is_refused(tmp_path: Path, text: bytes) -> None:
    assert refused(tmp_path, text).startswith("write a kubeconfig (")


def test_a_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    whole = yaml.safe_dump(config()).encode()
    padded = whole + b"#" * (MAX_FILE - len(whole))
    assert read(written(tmp_path, padded)).server == SERVER
    assert refused(tmp_path, padded + b"#") == f"keep it within {MAX_FILE} bytes"


@pytest.mark.parametrize(("name", "said"), [("absent", "No such file"), (".", "Is a directory")])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(SettingsFault, match=f"make it readable: {said}"):
        read(tmp_path / name)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 400), noise=st.binary(max_size=6))
def test_a_torn_file_is_refused_or_read_and_nothing_else(tmp_path: Path, cut: int, noise: bytes) -> None:
    whole = yaml.safe_dump(config({"server": SERVER, "certificate-authority-data": "aGk="}, {"token": "t"})).encode()
    try:
        assert isinstance(read(written(tmp_path, whole[:cut] + noise + whole[cut + 3 :])), Credentials)
    except SettingsFault as fault:
        assert str(fault).startswith("AIRMESH_KUBECONFIG = ")


def test_a_token_is_sent_and_never_shown(tmp_path: Path) -> None:
    found = read(written(tmp_path, config(user={"token": "hush"})))
    assert found.headers() == {"Authorization": "Bearer hush"}
    assert "hush" not in repr(found)


def test_a_token_file_is_read_again_after_its_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("one\n")
    found = read(written(tmp_path, config(user={"tokenFile": "token", "token": "ignored"})))
    now = 1000.0
    monkeypatch.setattr("services.cluster.kubeconfig.time.monotonic", lambda: now)
    assert found.headers() == {"Authorization": "Bearer one"}
    (tmp_path / "token").write_text("two\n")
    now += kubeconfig.TOKEN_AGE
    assert found.headers() == {"Authorization": "Bearer one"}
    now += 0.1
    assert found.headers() == {"Authorization": "Bearer two"}


@pytest.fixture
def pod(tmp_path: Path, pems: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a pod is given for its service account."""
    (tmp_path / "token").write_text("of the pod")
    (tmp_path / "ca.crt").write_bytes((pems / "ca.crt").read_bytes())
    monkeypatch.setattr(kubeconfig, "IN_CLUSTER", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("host", "port", "server"),
    [
        ("10.96.0.1", "6443", "https://10.96.0.1:6443"),
        ("fd00:10:96::1", "443", "https://[fd00:10:96::1]:443"),
        ("10.96.0.1", None, "https://10.96.0.1:443"),
    ],
)
def test_a_pod_finds_the_api_server_of_its_cluster(pod: Path, host: str, port: str | None, server: str) -> None:
    environment = {"KUBERNETES_SERVICE_HOST": host} | ({} if port is None else {"KUBERNETES_SERVICE_PORT": port})
    found = find(None, environment)
    assert found.server == server
    assert found.headers() == {"Authorization": "Bearer of the pod"}
    assert isinstance(found.tls(), ssl.SSLContext)


@pytest.mark.parametrize("lacks", ["host", "token"])
def test_outside_of_a_pod_a_kubeconfig_must_be_set(pod: Path, lacks: str) -> None:
    environment = {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}
    if lacks == "host":
        environment = {}
    else:
        (pod / "token").unlink()
    with pytest.raises(SettingsFault, match="AIRMESH_KUBECONFIG is not set: set it to a kubeconfig, or run in a pod"):
        find(None, environment)


def test_a_kubeconfig_comes_before_the_pods_own(pod: Path) -> None:
    assert find(written(pod, config()), {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}).server == SERVER
