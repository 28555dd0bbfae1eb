"""The one error for an object that cannot be understood: which object, which field, what is wrong, what to write.

Owns the wording. A translation function raises :class:`Wrong` with a path relative to the object; ``parse`` knows whose
object it is and turns it into :class:`Malformed`. Text from the object is cut, so that a message stays one line.
"""

from __future__ import annotations

MAX_QUOTE = 60
MAX_NAME = 320
"""Characters of ``namespace/name``: what the API allows fits."""
MAX_PART = 200
"""Characters of a path, a problem or a remedy."""


class Wrong(ValueError):
    """A field that cannot be understood; the object is named by whoever catches it."""

    def __init__(self, path: str, problem: str, remedy: str) -> None:
        super().__init__(f"{path}: {problem}; {remedy}")
        self.path = path
        self.problem = problem
        self.remedy = remedy


class Malformed(ValueError):
    """An object that cannot be understood.

    Its text is one sentence: ``Kind namespace/name: field.path: problem; remedy``.
    """

    def __init__(self, *, kind: str, name: str, path: str, problem: str, remedy: str) -> None:
        self.kind = kind
        self.name = _short(name, MAX_NAME)
        self.path = _short(path, MAX_PART)
        self.problem = _short(problem, MAX_PART)
        self.remedy = _short(remedy, MAX_PART)
        position = f"{self.path}: " if path else ""
        super().__init__(f"{kind} {self.name}: {position}{self.problem}; {self.remedy}")


def _short(text: str, most: int) -> str:
    """Text as it may stand in a message, whoever wrote it: on one line, nothing invisible in it, and cut."""
    shown = "".join(character if character.isprintable() else "?" for character in text[: most + 1])
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def quote(value: object) -> str:
    """A value as it may stand in a message: on one line and cut."""
    text = repr(value)
    return text if len(text) <= MAX_QUOTE else text[: MAX_QUOTE - 1] + "…"
