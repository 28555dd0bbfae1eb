"""Image archives: what `ctr` reads from them, and that equal content is equal bytes."""

import dataclasses
import hashlib
import io
import json
import tarfile

import pytest

from lab.images.archive import File, Image, Link, layer, pack

IMAGE = Image(
    names=("lab.local/a:1", "lab.local/b:2"),
    entrypoint=("/bin/run", "serve"),
    command=("--quietly",),
    tree={"bin/run": File(body=b"program", mode=0o755), "bin/sh": Link(target="run"), "etc/x/y": File(body=b"")},
)


def _members(body: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(body)) as tar:
        return {m.name: (file.read() if (file := tar.extractfile(m)) else b"") for m in tar.getmembers() if m.isfile()}


def test_manifest_config_and_layer_agree() -> None:
    files = _members(pack(IMAGE))
    (entry,) = json.loads(files["manifest.json"])
    config = json.loads(files[entry["Config"]])
    body = files[entry["Layers"][0]]
    assert entry["RepoTags"] == ["lab.local/a:1", "lab.local/b:2"]
    assert config["config"]["Entrypoint"] == ["/bin/run", "serve"]
    assert config["config"]["Cmd"] == ["--quietly"]
    assert config["rootfs"]["diff_ids"] == ["sha256:" + hashlib.sha256(body).hexdigest()]
    assert entry["Config"] == hashlib.sha256(files[entry["Config"]]).hexdigest() + ".json"


def test_the_layer_has_folders_before_their_files_owned_by_root() -> None:
    with tarfile.open(fileobj=io.BytesIO(layer(IMAGE.tree))) as tar:
        members = tar.getmembers()
    names = [member.name for member in members]
    assert names == ["bin", "etc", "etc/x", "bin/run", "bin/sh", "etc/x/y"]
    assert {(member.uid, member.gid) for member in members} == {(0, 0)}
    assert members[names.index("bin/run")].mode == 0o755
    assert members[names.index("bin/sh")].linkname == "run"


def test_equal_content_is_equal_bytes_in_any_order() -> None:
    other = dataclasses.replace(IMAGE, tree=dict(reversed(list(IMAGE.tree.items()))))
    assert pack(other) == pack(IMAGE)


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", ""])
def test_paths_that_leave_the_image_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match="image path"):
        layer({path: File(body=b"")})
