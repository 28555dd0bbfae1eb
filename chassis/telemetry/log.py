"""Logs: one JSON line per decision on standard error, with time, level, service, event, trace id and named values.

The shell logs, cores never do. ``event`` is a stable kebab-case name; everything that varies is a named value. An
impossible branch carries ``bug=True``. Lines of libraries (nats, aiohttp) come through the same pen.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import TextIO

import msgspec

from chassis.telemetry.spans import current_trace_id

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "fatal": 50}
"""No line has the last one: as a threshold it keeps all of them out."""
MAX_VALUE = 2000
"""Longest text of one value, in characters; what is longer is cut and ends in an ellipsis."""
MAX_DEPTH = 8
"""Levels of one value that are written; what lies deeper is an ellipsis."""
REPEAT_SECONDS = 60.0
MAX_COMPLAINTS = 256


def _plain(value: object, left: int = MAX_DEPTH) -> object:
    """Values that JSON does not know become their text, cut to MAX_VALUE."""
    if isinstance(value, bool | int | float) or value is None:
        return value
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item, left - 1) for item in list(value)[:100]] if left else "…"
    if isinstance(value, dict):
        return {_text(key): _plain(item, left - 1) for key, item in list(value.items())[:100]} if left else "…"
    return _text(value)


def _text(value: object) -> str:
    """Text that JSON takes, whatever the value is: a line that cannot be written would stop whoever logs it."""
    try:
        text = repr(value) if isinstance(value, BaseException) else str(value)
    except Exception as error:
        text = f"a {type(value).__name__} without text ({type(error).__name__})"
    if len(text) > MAX_VALUE:
        text = text[:MAX_VALUE] + "…"
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()  # no lone surrogates


class Log:
    """Writes lines of one service. ``Log.bind(node="n1")`` gives one whose lines all carry these values."""

    def __init__(self, service: str, level: str = "info", stream: TextIO | None = None, **bound: object) -> None:
        self._service = service
        self.threshold = level
        self._stream = stream
        self._bound = bound

    def bind(self, **values: object) -> Log:
        """A log with more values on every line."""
        bound = Log(self._service, stream=self._stream)
        bound._bound = {**self._bound, **values}
        bound.threshold = self.threshold
        return bound

    def debug(self, event: str, **values: object) -> None:
        """For one who follows a fault step by step."""
        self._write("debug", event, values)

    def info(self, event: str, **values: object) -> None:
        """A decision that was acted on."""
        self._write("info", event, values)

    def warning(self, event: str, **values: object) -> None:
        """Something is not as it should be and the service goes on."""
        self._write("warning", event, values)

    def error(self, event: str, **values: object) -> None:
        """Something failed that a person must know of."""
        self._write("error", event, values)

    def _write(self, level: str, event: str, values: dict[str, object]) -> None:
        if _LEVELS[level] < _LEVELS[self.threshold]:
            return
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1e6):06d}Z"
        line: dict[str, object] = {"time": stamp, "level": level, "service": self._service, "event": event}
        trace_id = current_trace_id()
        if trace_id:
            line["trace_id"] = trace_id
        for key, value in {**self._bound, **values}.items():
            line[key] = _plain(value)
        stream = self._stream or sys.stderr
        stream.write(msgspec.json.encode(line).decode() + "\n")
        stream.flush()


class _Bridge(logging.Handler):
    """Brings the lines of libraries into ours; the same complaint at most once in REPEAT_SECONDS, with a count."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log
        self._said: dict[tuple[str, str], tuple[float, int]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        complaint = (record.name, str(record.msg)[:100])
        said, unsaid = self._said.get(complaint, (-REPEAT_SECONDS, 0))
        if record.created - said < REPEAT_SECONDS:
            self._said[complaint] = (said, unsaid + 1)
            return
        if len(self._said) >= MAX_COMPLAINTS:
            self._said.clear()
        self._said[complaint] = (record.created, 0)
        level = "error" if record.levelno >= logging.ERROR else "warning"
        values: dict[str, object] = {"library": record.name, "message": _message(record)}
        if unsaid:
            values["repeated"] = unsaid
        if record.exc_info and record.exc_info[1] is not None:
            values["error"] = record.exc_info[1]
        self._log._write(level, "library", values)


def _message(record: logging.LogRecord) -> str:
    """What a library says; its format as it is where its values do not fit in."""
    try:
        return record.getMessage()
    except Exception:
        return str(record.msg)


def bridge_libraries(log: Log) -> None:
    """Send warnings and errors of the standard ``logging`` tree to ``log``, in place of whatever was there."""
    root = logging.getLogger()
    root.handlers[:] = [_Bridge(log)]
    root.setLevel(logging.WARNING)
