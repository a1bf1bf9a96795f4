"""Tokens to money, and money to people.

    prices.py    what a token costs, on which day; exact sums in nano-dollars
    tokens.py    tokens counted without asking Gemini, and how far off that is
    recorder.py      one attempt at Gemini on the books, from its reservation to its settlement
    maintenance.py    what the ledger needs beside the requests: late settlements, retention
    export.py    the ledger's rows as CSV and JSON lines, and the times that select them
    report.py    the ledger's sums as tables to read
    cli.py       export, report and prune from the command line

`cost_tracker` is the front guard for scripts and people.
"""
