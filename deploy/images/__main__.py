"""``python -m deploy.images``: build the images of this commit, say how large they are, save them to files."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from deploy.images import plan
from deploy.images.build import build_images
from deploy.images.engine import Engine, EngineError, find_engine, machine


def say(line: str) -> None:
    """One line of progress."""
    print(line, flush=True)  # noqa: T201 - a command


def _chosen(names: list[str]) -> list[plan.Image]:
    known = {image.service: image for image in plan.images()}
    if unknown := sorted(set(names) - set(known)):
        raise plan.PlanError(f"no image is called {', '.join(unknown)}: {', '.join(known)}")
    return [image for service, image in known.items() if not names or service in names]


def _build(engine: Engine, given: argparse.Namespace) -> None:
    built = build_images(
        engine, _chosen(given.services), arch=given.arch, tag=given.tag or plan.tag(), say=say, fresh=given.no_cache
    )
    say(f"\n{'image':44} {'MB':>5}  seconds  digest of the configuration")
    for one in built:
        say(f"{one.name:44} {one.size / 1e6:5.0f}  {one.seconds:7.0f}  {one.identity.removeprefix('sha256:')[:16]}")


def _save(engine: Engine, given: argparse.Namespace) -> None:
    given.folder.mkdir(parents=True, exist_ok=True)
    for image in _chosen(given.services):
        name, path = image.name(given.tag or plan.tag()), given.folder / f"{image.service}.tar"
        path.unlink(missing_ok=True)
        engine.run("save", *(("--format", "docker-archive") if engine.is_podman else ()), "--output", str(path), name)
        say(f"{path}: {name}")


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m deploy.images", description=__doc__)
    verbs = parser.add_subparsers(required=True)
    build = verbs.add_parser("build", help="build them (all, or those named)")
    build.add_argument("--arch", choices=plan.ARCHITECTURES, default=machine())
    build.add_argument("--no-cache", action="store_true", help="take no layer of an earlier build")
    build.set_defaults(verb=_build)
    save = verbs.add_parser("save", help="write them as archives that `ctr images import` and `docker load` take")
    save.add_argument("--folder", type=Path, default=plan.ROOT / "build" / "images")
    save.set_defaults(verb=_save)
    for verb in (build, save):
        verb.add_argument("services", nargs="*", metavar="IMAGE")
        verb.add_argument("--tag", help="another tag than the manifests'")
    given = parser.parse_args()
    try:
        given.verb(find_engine(), given)
    except (EngineError, plan.PlanError) as error:
        print(f"images: {error}", file=sys.stderr)  # noqa: T201 - a command
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
