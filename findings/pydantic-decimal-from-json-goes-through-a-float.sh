#!/usr/bin/env bash
# pydantic: a Decimal field read from a JSON number has been a float on the way, and loses digits.
#
# One would guess:  model_validate_json fills a Decimal from the number's own digits; that is why one takes Decimal.
# What happens:     the parser makes a 64-bit float of it first. 12345678901234567890.123 becomes 12345678901234567000, with
#                   no error, and no trace of 1.10's two places. A JSON string keeps every digit, and so does Python's
#                   json with parse_float=Decimal before model_validate.
# Seen with:        pydantic 2.14.4, Python 3.11.7; 2026-11-27
# Output seen:      number: 12345678901234567000; string: 12345678901234567890.123; json with parse_float: the same

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv --without-pip "$work/venv"
python3 -m pip --python "$work/venv/bin/python" install --quiet --disable-pip-version-check --no-compile \
  pydantic==2.14.4

"$work/venv/bin/python" - <<'PYTHON'
import json
from decimal import Decimal

from pydantic import BaseModel


class Bill(BaseModel):
    amount: Decimal


DIGITS = "12345678901234567890.123"
number = Bill.model_validate_json(f'{{"amount": {DIGITS}}}').amount
string = Bill.model_validate_json(f'{{"amount": "{DIGITS}"}}').amount
parsed = Bill.model_validate(json.loads(f'{{"amount": {DIGITS}}}', parse_float=Decimal)).amount
places = str(Bill.model_validate_json('{"amount": 1.10}').amount)
print(f"number: {number}; string: {string}; json with parse_float: {parsed}; 1.10: {places}")
assert number == Decimal("12345678901234567000") and places == "1.1", "CHANGED: the digits are kept"
assert string == parsed == Decimal(DIGITS), "CHANGED: the other ways lose digits"
print("as described")
PYTHON
