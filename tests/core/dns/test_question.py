"""The question that servers are asked, byte by byte, and what counts as an answer to it."""

from __future__ import annotations

import struct

import pytest

from services.dns.core.question import is_answered, name_of_api, question

ASKED = question(name_of_api("cluster.local"), 0x1234)


def answer(number: int = 0x1234, flags: int = 0x8580, body: bytes = ASKED[12:]) -> bytes:
    return struct.pack("!6H", number, flags, 1, 1, 0, 0) + body + b"\xc0\x0c\0\1\0\1\0\0\0\x1e\0\4\x0a\x60\0\1"


def test_a_question_is_written_as_the_rfc_says() -> None:
    written = bytes.fromhex("1234 0100 0001 0000 0000 0000") + (
        b"\x0akubernetes\x07default\x03svc\x07cluster\x05local\0\0\1\0\1"
    )
    assert written == ASKED


@pytest.mark.parametrize(
    ("said", "answered"),
    [
        (answer(), True),
        (answer(flags=0x8780), True),  # truncated
        (answer(body=ASKED[12:].upper()), True),
        (answer(number=0x1235), False),
        (answer(flags=0x0580), False),  # a question
        (answer(flags=0x8582), False),  # SERVFAIL
        (answer(flags=0x8583), False),  # NXDOMAIN
        (answer(body=ASKED[12:].replace(b"default", b"defaulx")), False),
        (answer()[: len(ASKED) - 1], False),
        (b"", False),
        (b"\0" * 512, False),
    ],
)
def test_what_is_an_answer(said: bytes, answered: bool) -> None:
    assert is_answered(ASKED, said) is answered
