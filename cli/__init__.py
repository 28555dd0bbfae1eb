"""`airmesh`: an observer of the mesh that speaks only NATS (and starts the lab).

It changes nothing: the bus grants its user reading, asking and listening. Each command gathers what it needs within one
deadline, makes a *report* of it (pure, `cli.reports`: a frozen value whose fields are what `--output json` prints),
and shows the report as tables for a person. Exit codes: see `cli.faults`.
"""
