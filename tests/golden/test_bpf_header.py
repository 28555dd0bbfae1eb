"""The C header says what the Python records say."""

from services.dataplane.datapath.header import HEADER, render_header


def test_generated_header_is_fresh() -> None:
    assert HEADER.read_text() == render_header(), "run: python -m services.dataplane.datapath.header"
