"""`python cost_tracker.py prices`: what is in force, for a person, a program and the documentation."""

from __future__ import annotations

import json
import re
import shlex
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from mtllm.billing.cli import main
from mtllm.billing.price_list import list_prices
from mtllm.billing.prices import Price, PriceTable
from mtllm.gemini.models import Availability, ModelFacts, ModelTable
from mtllm.project import PROJECT

TODAY = "2026-11-27"


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prices are those of the file, whatever the machine's environment says."""
    for name in ("PRICES_FILE", "INPUT_PRICE_PER_MILLION", "OUTPUT_PRICE_PER_MILLION"):
        monkeypatch.delenv(name, raising=False)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return what the command prints."""
    assert main(["prices", *arguments]) == 0
    return capsys.readouterr().out


def test_the_documentation_has_the_table_that_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    """docs/operations.md names the command; its output stands below it, to the letter."""
    document = (PROJECT / "docs" / "operations.md").read_text(encoding="utf-8")
    [(arguments, table)] = re.findall(
        r"<!-- python cost_tracker\.py prices (.+) -->\n(.*?)<!-- end models -->", document, re.DOTALL
    )
    assert printed(capsys, *shlex.split(arguments)) == table


def test_a_person_sees_prices_states_and_what_will_change(capsys: pytest.CaptureFixture[str]) -> None:
    """One line a model, then the changes by day."""
    lines = [re.split(r"\s{2,}", line) for line in printed(capsys, "--at", TODAY).splitlines()]
    assert [
        "gemini-3.1-flash-lite",
        "current",
        "0.25",
        "0.025",
        "1.50",
        "used",
        "minimal* low medium high",
        "65,536",
    ] in lines
    assert ["", "2026-12-01", "gemini-4-argon: input 4.00, cached 0.20, output 20.00"] in lines


def test_another_day_has_other_prices(capsys: pytest.CaptureFixture[str]) -> None:
    """After the last known change none is announced."""
    out = printed(capsys, "--at", "2027-01-01")
    assert re.search(r"^gemini-3\.8-flash +current +1\.50 +0\.15 +7\.50 ", out, re.MULTILINE)
    assert "Changes" not in out


def test_a_program_gets_exact_rates_with_their_sources(capsys: pytest.CaptureFixture[str]) -> None:
    """Rates are decimal texts with nine digits; what is unknown is null."""
    document = json.loads(printed(capsys, "--at", TODAY, "--format", "json"))
    models = {entry["model"]: entry for entry in document["models"]}
    assert document["at"] == TODAY
    lite = models["gemini-2.0-flash-lite"]["price"]
    assert (lite["input"], lite["cached_input"], lite["confidence"]) == ("0.075000000", None, "confirmed")
    assert models["gemini-2.5-pro"]["facts"]["thinking"] == {
        "form": "budget",
        "levels": {"minimal": 128, "low": 1024, "medium": 8192, "high": 24576},
        "default": "dynamic",
    }
    assert {"at": "2026-12-01", "model": "gemini-4-argon"}.items() <= next(
        change for change in document["changes"] if change["model"] == "gemini-4-argon"
    ).items()


def test_the_day_is_today_unless_one_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """A table without `--at` is of a day between the start and the end of the command."""
    before = datetime.now().astimezone().date()
    told = date.fromisoformat(json.loads(printed(capsys, "--format", "json"))["at"])
    assert abs((told - before).days) <= 1


def test_the_settings_decide_what_is_in_force(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Both price settings together take the place of the table, for every model; PRICES_FILE names another table."""
    file = tmp_path / "mine.toml"
    file.write_text('[[price]]\nmodel = "mine"\nfrom = 2026-01-01\ninput = 1\ncached_input = "unknown"\noutput = 2\n')
    monkeypatch.setenv("PRICES_FILE", str(file))
    assert re.search(r"^mine +- +1\.00 +unknown +2\.00 +- +- +-$", printed(capsys, "--at", TODAY), re.MULTILINE)
    monkeypatch.setenv("INPUT_PRICE_PER_MILLION", "3")
    monkeypatch.setenv("OUTPUT_PRICE_PER_MILLION", "4.5")
    out = printed(capsys, "--at", TODAY)
    assert re.search(r"^gemini-4-neon +current +3\.00 +3\.00 +4\.50 ", out, re.MULTILINE)
    assert "mine" not in out


@pytest.mark.parametrize(("arguments", "status"), [(["--at", "tomorrow"], 2), (["--format", "xml"], 2)])
def test_a_mistake_is_told_in_a_sentence(capsys: pytest.CaptureFixture[str], arguments: list[str], status: int) -> None:
    """Exit status 2 and no traceback."""
    with pytest.raises(SystemExit) as exit_:
        main(["prices", *arguments])
    assert exit_.value.code == status
    assert "Traceback" not in capsys.readouterr().err


def test_a_broken_table_is_told_in_a_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With its file and what is wrong."""
    file = tmp_path / "mine.toml"
    file.write_text("[[price]]\nmodel = 'm'\n")
    monkeypatch.setenv("PRICES_FILE", str(file))
    assert main(["prices"]) == 1
    assert capsys.readouterr().err == "cost_tracker: mine.toml: price entry 1 (m): 'cached_input' is missing\n"


def test_a_model_of_one_table_alone_is_listed() -> None:
    """Whatever either table knows by that day; one that begins later is only a change to come."""
    day, later = date(2026, 1, 1), date(2026, 2, 1)
    prices = PriceTable([Price("priced", day, 1, 1, 1), Price("coming", later, 1, 1, 1)])
    models = ModelTable([ModelFacts("known", day, Availability.CURRENT)])
    listed = list_prices(prices, models, day)
    assert [(row.model, row.price is not None, row.facts.known) for row in listed.rows] == [
        ("priced", True, False),
        ("known", False, True),
    ]
    assert [(change.day, change.model) for change in listed.changes] == [(later, "coming")]


def test_every_model_is_in_both_shipped_tables() -> None:
    """A model whose price is known has its facts too, and the other way round; every entry names its source."""
    prices, models = PriceTable.load(PROJECT / "prices.toml"), ModelTable.load(PROJECT / "models.toml")
    assert set(prices.models()) == set(models.models())
    for model in prices.models():
        for price in prices.changes_of(model):
            assert price.evidence.source, model
            assert price.evidence.confidence, model
            assert price.since >= models.changes_of(model)[0].since


def test_an_unknown_cached_rate_is_the_input_rate(tmp_path: Path) -> None:
    """It can only be too much."""
    file = tmp_path / "prices.toml"
    file.write_text('[[price]]\nmodel = "m"\nfrom = 2026-01-01\ninput = 0.5\ncached_input = "unknown"\noutput = 2\n')
    price = PriceTable.load(file).price_of("m", date(2026, 1, 1))
    assert price is not None
    assert (price.cached_is_known, price.cached_input, price.input) == (False, price.input, int(Decimal("0.5") * 10**9))
