"""The probe looks at a service and spoils nothing in it."""

from __future__ import annotations

import threading

from tests.drills.probe import _types

LOOKS = 12


def test_a_look_meets_no_tuple_that_another_thread_fills() -> None:
    """CPython raises SystemError where a tuple is filled while somebody else refers to it."""
    done, spoilt = threading.Event(), list[SystemError]()

    def fill() -> None:
        while not done.is_set():
            try:
                tuple(number for number in range(200))
            except SystemError as error:
                spoilt.append(error)

    filling = [threading.Thread(target=fill) for _ in range(2)]
    for thread in filling:
        thread.start()
    try:
        found = [_types() for _ in range(LOOKS)]
    finally:
        done.set()
        for thread in filling:
            thread.join()
    assert spoilt == []
    assert all(dict in kinds and len(kinds) > 1000 for kinds in found)
