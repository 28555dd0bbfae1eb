"""Reports: pure functions from what was read off the bus to what is shown.

A report is a frozen struct; its field names are the published contract of `--output json` (only ever added to), and its
`tables` function says how a person sees it. Nothing here reads a clock, the bus or the terminal.
"""
