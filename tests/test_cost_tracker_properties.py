"""What holds for every price, amount, table and text that hypothesis can think of."""

from __future__ import annotations

import csv
import io
import json
import math
from contextlib import suppress
from datetime import date
from decimal import ROUND_HALF_EVEN, Decimal
from itertools import groupby
from pathlib import Path

import pytest

from mtllm.billing.export import export_csv, export_jsonl
from mtllm.billing.prices import Price, PriceTable
from mtllm.billing.tokens import TokenCounter
from mtllm.domain.money import Cost, exact_usd, format_usd
from mtllm.domain.times import parse_time, rfc3339
from tests.test_cost_cli import ROW

pytest.importorskip("hypothesis")
from hypothesis import example, given, settings
from hypothesis import strategies as st

COUNTER = TokenCounter()
rates = st.integers(0, 10**12)
tokens = st.integers(0, 10**9)
days = st.dates(date(2025, 1, 1), date(2027, 12, 31))
names = st.lists(st.sampled_from(["gemini", "2.5", "flash", "lite", "pro", "001"]), min_size=1, max_size=5).map(
    "-".join
)
entries = st.lists(st.builds(Price, names, days, rates, rates, rates), max_size=12)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))


def rounded(amount: Decimal, unit: str) -> Decimal:
    return amount.quantize(Decimal(unit), rounding=ROUND_HALF_EVEN)


@given(rates, rates, rates, tokens, tokens, tokens)
def test_costs_are_the_decimal_ones(
    input_: int, cached_input: int, output: int, tokens_in: int, tokens_out: int, cached: int
) -> None:
    """Each part is the exact product rounded half even once; the total is their sum; the bound is never below it."""
    price = Price("m", date.min, input_, cached_input, output)
    cost = price.cost(tokens_in, tokens_out, cached)
    from_cache = min(cached, tokens_in)
    exact = Decimal((tokens_in - from_cache) * input_ + from_cache * cached_input) / 10**6
    assert cost == Cost(int(rounded(exact, "1")), int(rounded(Decimal(tokens_out * output) / 10**6, "1")))
    assert cost.total == cost.input + cost.output <= price.bound(tokens_in, tokens_out)


@given(st.text(max_size=60), st.lists(st.tuples(st.text("0123456789", min_size=1), st.text("abc .,-\n", min_size=1))))
def test_an_estimate_adds_what_gemini_counts_for_digits(words: str, pairs: list[tuple[str, str]]) -> None:
    """For each run of n digits n - ceil(n / 3); never more tokens than bytes, which is what budgets reserve."""
    text = f"{words} " + "".join(map("".join, pairs))
    runs = ["".join(run) for is_digit, run in groupby(text, "0123456789".__contains__) if is_digit]
    added = sum(len(run) - math.ceil(len(run) / 3) for run in runs)
    assert COUNTER.estimate_tokens(text) == COUNTER.count_tokens(text) + added <= len(text.encode())


@given(st.integers(-(10**18), 10**18))
def test_dollars_are_the_decimal_ones(nano: int) -> None:
    """Six decimals are rounded half even, nine lose nothing."""
    dollars = Decimal(nano) / 10**9
    assert Decimal(format_usd(nano)) == rounded(dollars, "0.000001")
    assert Decimal(exact_usd(nano)) == dollars
    assert (len(format_usd(nano).partition(".")[2]), len(exact_usd(nano).partition(".")[2])) == (6, 9)


@given(entries, names, days)
def test_the_price_is_that_of_the_longest_name_and_the_newest_day(table: list[Price], model: str, on: date) -> None:
    """Against a model of three lines."""
    known = [price.model for price in table if model == price.model or model.startswith(price.model + "-")]
    begun = [price for price in table if known and price.model == max(known, key=len) and price.since <= on]
    newest = max((price.since for price in begun), default=None)
    found = PriceTable(table).price_of(model, on)
    assert (found and found.since) == newest
    assert found is None or found in begun


@given(texts, texts, texts)
@example("=1+1", "a\r\nb", "'")
def test_csv_gives_back_what_went_in(client: str, model: str, key: str) -> None:
    """Cells come back as they were but for the apostrophe before a formula; no cell begins one."""
    row = ROW._replace(client=client, model=model, key=key)
    [cells] = csv.DictReader(io.StringIO("".join(export_csv([row])), newline=""))
    for name, value in (("client", client), ("model", model), ("key", key)):
        assert cells[name] in (value, "'" + value)
        assert not cells[name].startswith(("=", "+", "-", "@", "\t", "\r"))
    assert cells["total_cost"] == "0.000185000"


@given(st.text(), st.text())
def test_json_lines_give_back_what_went_in(client: str, key: str) -> None:
    """Every text survives, on one line, as ASCII."""
    text = "".join(export_jsonl([ROW._replace(client=client, key=key)]))
    assert text.isascii()
    assert text.count("\n") == 1
    values = json.loads(text)
    assert (values["client"], values["key"]) == (client, key)


@given(st.text() | st.from_regex(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:\d\d)?", fullmatch=True))
@example("0000-00-00T00:00")
@example("9999-12-31T23:59:59.999999-23:59")
@example("2026-01-01T00:00+99:99")
def test_a_time_is_read_or_refused(text: str) -> None:
    """Nothing but ValueError, whatever is written; what is read can be written."""
    with suppress(ValueError):
        seconds = parse_time(text)
        assert rfc3339(seconds)


@given(st.datetimes())
def test_a_moment_in_utc_is_read_exactly(moment: object) -> None:
    """Written with and without its zone, a time is the same."""
    assert parse_time(f"{moment}Z") == parse_time(f"{moment}+00:00") == parse_time(f"{moment}")


toml_values = st.one_of(
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["true", "'x'", "[]", "{}", "2026-01-01", "2026-01-01T00:00:00Z", "1e-400", "1e400", "0.1"]),
)
toml_entries = st.dictionaries(
    st.sampled_from(["model", "from", "input", "cached_input", "output", "other"]), toml_values
)


@settings(deadline=None)
@given(st.lists(toml_entries, max_size=3), st.text())
def test_a_price_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, found: list[dict[str, str]], tail: str
) -> None:
    """Nothing but ValueError that names the file, whatever is in it."""
    lines = ["[[price]]\n" + "".join(f"{name} = {value}\n" for name, value in entry.items()) for entry in found]
    file: Path = tmp_path_factory.getbasetemp() / "fuzzed.toml"
    file.write_text("".join(lines) + tail, encoding="utf-8", errors="replace")
    try:
        PriceTable.load(file)
    except ValueError as error:
        told = str(error)
    else:
        told = "fuzzed.toml is a table"
    assert told.startswith("fuzzed.toml")
