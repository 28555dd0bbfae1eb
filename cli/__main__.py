"""Entry of `python -m cli` (the launcher `bin/airmesh` runs it).

Promises that no traceback is ever a person's answer: an unforeseen error is one sentence and exit code 70.
"""

from cli.app import run

raise SystemExit(run())
