"""Tokens to money, and money to people. `cost_tracker` is the front door: import from there.

prices.py    what a token costs, on which day; exact sums in nano-dollars
tokens.py    tokens counted without asking Gemini, and how far off that is
records.py   the ledger's rows as CSV, JSON lines and a table to read
"""
