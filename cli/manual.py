"""The manual of `airmesh`, docs/cli.md, made from the commands' own help: python -m cli.manual > docs/cli.md.

A house test compares, so that the page never says anything else than `--help` does.
"""

from __future__ import annotations

from collections.abc import Iterator

import click

from cli.app import airmesh

_HEAD = """\
# airmesh(1)

<!-- Made by `python -m cli.manual`; do not edit. -->
"""
_WIDTH = 96


def _commands(command: click.Command, names: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield names, command
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            yield from _commands(command.commands[name], (*names, name))


def page() -> str:
    """The whole page as Markdown."""
    parts = [_HEAD]
    for names, command in _commands(airmesh, ("airmesh",)):
        settings = {**airmesh.context_settings, **command.context_settings}
        context = click.Context(command, info_name=" ".join(names), terminal_width=_WIDTH, **settings)
        parts.append(f"{'#' * min(len(names) + 1, 4)} {' '.join(names)}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    click.echo(page(), nl=False)
