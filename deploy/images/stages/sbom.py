"""sbom.py SERVICE VERSION ROOT…: what is in the image, as CycloneDX, in the image itself (below the last root).

Its parts are read from what is there: Debian's packages by /var/lib/dpkg/status.d, Python's by their metadata, Go's
modules by what the linker wrote into a program. The document names no time, and its serial number follows from its
content, so that it is the same each time; it is held against CycloneDX' schema: one that is not valid ends the build.
"""

import email.parser
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

from cyclonedx.model import ExternalReference, ExternalReferenceType, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

DOCUMENT = Path("usr/share/doc/airmesh/sbom.cdx.json")
NAMESPACE = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")
"""RFC 4122, of URLs."""
GO_MARK = b"\xff Go buildinf:"


def debian(root: Path) -> Iterator[Component]:
    for status in sorted((root / "var/lib/dpkg/status.d").glob("*")):
        said = email.parser.Parser().parsestr(status.read_text(), headersonly=True)
        name, version, arch = said["Package"], said["Version"], said["Architecture"]
        qualifiers = {"arch": arch, "distro": "debian-12"}
        if said["Source"]:
            qualifiers["upstream"] = said["Source"].split()[0]
        purl = PackageURL("deb", "debian", name, version, qualifiers)
        yield Component(
            type=ComponentType.LIBRARY,
            name=name,
            version=version,
            purl=purl,
            bom_ref=purl.to_string(),
            description=said["Description"].partition("\n")[0],
        )


def python(root: Path) -> Iterator[Component]:
    for metadata in sorted((root / "opt/airmesh/packages").glob("*.dist-info/METADATA")):
        said = email.parser.Parser().parsestr(metadata.read_text(), headersonly=True)
        name, version = said["Name"], said["Version"]
        purl = PackageURL("pypi", None, name.lower().replace("_", "-"), version)
        home = said["Home-page"]
        links = [ExternalReference(type=ExternalReferenceType.WEBSITE, url=XsUri(home))] if home else []
        yield Component(
            type=ComponentType.LIBRARY,
            name=name,
            version=version,
            purl=purl,
            bom_ref=purl.to_string(),
            description=said["Summary"],
            external_references=links,
        )


def go(root: Path) -> Iterator[Component]:
    for program in sorted((root / "usr/bin").glob("*")):
        body = program.read_bytes() if program.is_file() else b""
        if (at := go_mark(body)) < 0:
            continue
        compiler, end = counted(body, at + 32)
        modules = counted(body, end)[0][16:-16].decode()  # between two marks of 16 bytes
        found = [("stdlib", compiler.decode().removeprefix("go").split()[0])]
        for line in modules.splitlines():
            kind, *words = line.split("\t")
            if kind == "=>":  # takes the place of the one above
                found.pop()
            if kind in ("mod", "dep", "=>"):
                found.append((words[0], words[1]))
        for path, module_version in found:
            namespace, _, name = path.rpartition("/")
            purl = PackageURL("golang", namespace or None, name, module_version)
            yield Component(
                type=ComponentType.LIBRARY,
                name=path,
                version=module_version,
                purl=purl,
                bom_ref=purl.to_string(),
            )


def go_mark(body: bytes) -> int:
    """Where Go's build information begins (debug/buildinfo: aligned to 16, its texts after a header of 32), or -1."""
    at = body.find(GO_MARK)
    while at >= 0 and (at % 16 or not body[at + 15] & 2):
        at = body.find(GO_MARK, at + 1)
    return at


def counted(body: bytes, at: int) -> tuple[bytes, int]:
    """The text at a place, after its length (an unsigned varint), and where it ends."""
    length = shift = 0
    while True:
        byte, at = body[at], at + 1
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return body[at : at + length], at + length


def main() -> None:
    service, version, *roots = sys.argv[1:]
    subject = Component(
        type=ComponentType.CONTAINER, name=f"airmesh-{service}", version=version, bom_ref=f"airmesh-{service}"
    )
    bom = Bom(components=[part for root in roots for read in (debian, python, go) for part in read(Path(root))])
    bom.metadata.component = subject
    bom.register_dependency(subject, bom.components)
    content = "\n".join(sorted(str(part.purl) for part in bom.components))
    bom.serial_number = uuid.uuid5(NAMESPACE, f"{service} {version}\n{content}")
    bom.metadata.timestamp = None
    text = JsonV1Dot6(bom).output_as_string(indent=1)
    if (wrong := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)) is not None:
        sys.exit(f"the SBOM is no CycloneDX 1.6: {wrong}")
    document = Path(roots[-1]) / DOCUMENT
    document.parent.mkdir(parents=True, exist_ok=True)
    document.write_text(text + "\n")


if __name__ == "__main__":
    main()
