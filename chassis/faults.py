"""The tree of errors that the chassis raises and that every service's own errors hang on.

``Retryable``: the same call may succeed later. ``Refused``: somebody said no, with a stable code; trying again helps
only when ``retry`` is true. ``Bug``: a branch that cannot be taken was taken.
An expected outcome (a lost compare-and-set)
is no error but a value: ``chassis.bus.kv.Conflict``.
"""

from __future__ import annotations

from proto.codec import Malformed, UnknownVersion


class Fault(Exception):
    """Root of every error that is ours."""


class Retryable(Fault):
    """Not now; the same later may succeed."""


class Unavailable(Retryable):
    """Nobody answered in time, or there is no connection.

    A write that ends so may have happened: read the key again and know your own record by its nonce.
    """


class Damaged(Retryable, Malformed):
    """A key's value cannot be read, or was not written by who may: its writer writes it again within seconds."""


class Newer(Retryable, UnknownVersion):
    """A key's value is of a major version that only a newer release knows: leave it to that."""


class Refused(Fault):
    """Somebody said no. ``code`` is stable and short (``pool-exhausted``); ``message`` is one sentence for a person."""

    def __init__(self, code: str, message: str, retry: bool = False) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.retry = retry


class Missing(Fault):
    """A bucket that is not there yet: wait, ``cluster`` makes it."""


class Bug(Fault):
    """An impossible branch was taken."""


class SettingsFault(Fault):
    """A setting that cannot be used: names the variable, its value and the remedy in one line."""

    def __init__(self, variable: str, value: str | None, remedy: str) -> None:
        shown = "is not set" if value is None else f"= {value!r} cannot be used"
        super().__init__(f"{variable} {shown}: {remedy}")
        self.variable = variable
        self.value = value
        self.remedy = remedy
