"""Prices, exact sums, tokens counted on disk, and the natural Python face over them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import weakref
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

from cost_tracker import TokenCounter
from mtllm.billing.prices import Price, PriceTable, SpendMeter
from mtllm.billing.tokens import VOCABULARY_DIR, Vocabularies
from mtllm.domain.money import Cost, exact_usd, format_usd
from mtllm.project import PROJECT
from tests.support.fakes import FakeClock
from tests.support.serving import eventually

TODAY = date(2026, 11, 23)


@pytest.fixture(scope="module")
def table() -> PriceTable:
    return PriceTable.load(PROJECT / "prices.toml")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(scope="module")
def counter() -> TokenCounter:
    return TokenCounter()


def price_at(table: PriceTable, model: str, on: date = TODAY) -> Price:
    price = table.price_of(model, on)
    assert price is not None
    return price


class TestPriceTable:
    def test_the_default_model_costs_what_the_document_says(self, table: PriceTable) -> None:
        """$0.10 per million input tokens is 100 nano-dollars a token, $0.40 of output is 400."""
        cost = price_at(table, "gemini-2.5-flash-lite").cost(150, 425)
        assert cost == Cost(input=15_000, output=170_000)
        assert format_usd(cost.output) == "0.000170"

    @pytest.mark.parametrize(
        ("model", "named"),
        [
            ("gemini-2.5-flash-lite", "gemini-2.5-flash-lite"),
            ("models/gemini-2.5-flash-lite", "gemini-2.5-flash-lite"),
            ("gemini-2.5-flash-lite-preview-09-2025", "gemini-2.5-flash-lite"),
            ("gemini-2.5-flash-001", "gemini-2.5-flash"),
            ("offline-echo", "gemini-2.5-flash-lite"),
        ],
    )
    def test_a_model_is_matched_exactly_or_by_its_longest_prefix(
        self, table: PriceTable, model: str, named: str
    ) -> None:
        """The longest name that ends at a dash decides; offline models cost what the default one does."""
        assert price_at(table, model).model == named

    @pytest.mark.parametrize("model", ["", "gemini", "gemini-2.5", "gemini-2.5-flashy", "gpt-4", "-", "models/"])
    def test_a_model_the_table_does_not_know_has_no_price(self, table: PriceTable, model: str) -> None:
        """A name that merely begins alike, without a dash, is another model."""
        assert table.price_of(model, TODAY) is None

    def test_the_newest_price_that_has_begun_holds(self, table: PriceTable) -> None:
        """gemini-3.8-flash doubles on 2027-01-01, that day included, and had no price before it existed."""
        model = "gemini-3.8-flash"
        assert price_at(table, model, date(2026, 12, 31)).output == 3_750_000_000
        assert price_at(table, model, date(2027, 1, 1)).output == 7_500_000_000
        assert table.price_of(model, date(2026, 9, 1)) is None

    def test_a_named_model_never_falls_back_to_a_shorter_name(self) -> None:
        """A price that has yet to begin is no reason to charge another model's."""
        short = Price("a", date(2020, 1, 1), 1, 1, 1)
        long = Price("a-b", date(2027, 1, 1), 2, 2, 2)
        assert PriceTable([short, long]).price_of("a-b-c", TODAY) is None

    def test_both_settings_together_price_every_model(self) -> None:
        """Cached input is charged at the input rate, whatever the model is called."""
        price = price_at(PriceTable.fixed(0.1, Decimal("0.4")), "anything")
        assert (price.input, price.cached_input, price.output) == (100_000_000, 100_000_000, 400_000_000)

    def test_the_memo_stays_small(self) -> None:
        """Thousands of model names change no answer."""
        fixed = PriceTable.fixed(1, 2)
        assert {fixed.price_of(f"m{number}", TODAY) for number in range(2000)} == {price_at(fixed, "x")}

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            ({"model": "''"}, "price entry 1: 'model' must be"),
            ({"model": "7"}, "price entry 1: 'model' must be"),
            ({"from": "'2026-01-01'"}, "price entry 1 (m): 'from' must be a date"),
            ({"from": "2026-01-01T00:00:00"}, "price entry 1 (m): 'from' must be a date"),
            ({"input": "-1"}, "price entry 1 (m): 'input' must lie between"),
            ({"input": "nan"}, "price entry 1 (m): 'input' must lie between"),
            ({"output": "inf"}, "price entry 1 (m): 'output' must lie between"),
            ({"output": "1e99"}, "price entry 1 (m): 'output' must lie between"),
            ({"output": "true"}, "price entry 1 (m): 'output' must be a number"),
            ({"cached_input": "'0.1'"}, "price entry 1 (m): 'cached_input' must be a number"),
            ({"cached_input": "1e-10"}, "price entry 1 (m): 'cached_input' must have at most 9 decimals"),
            ({"cached_input": None}, "price entry 1 (m): 'cached_input' is missing"),
            ({"cached_input": "'unknwon'"}, "price entry 1 (m): 'cached_input' must be a number"),
            ({"input": "'unknown'"}, "price entry 1 (m): 'input' must be a number"),
            ({"currency": "'EUR'"}, "price entry 1 (m): 'currency' is not a field"),
            ({"confidence": "'sure'"}, "price entry 1 (m): 'confidence' must be one of confirmed, reported, inferred"),
            ({"source": "7"}, "price entry 1 (m): 'source' must be a text of one line"),
        ],
    )
    def test_a_bad_entry_is_named_with_its_field(
        self, tmp_path: Path, change: dict[str, str | None], told: str
    ) -> None:
        """The error says which file, which entry and which field, and what would be right."""
        fields = {"model": "'m'", "from": "2026-01-01", "input": "1", "cached_input": "0.5", "output": "2.0"} | change
        file = tmp_path / "prices.toml"
        file.write_text("[[price]]\n" + "".join(f"{name} = {value}\n" for name, value in fields.items() if value))
        with pytest.raises(ValueError, match="prices") as caught:
            PriceTable.load(file)
        assert str(caught.value).startswith(f"prices.toml: {told}")

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"price = 3",
            b"price = [3]",
            b"[price]\nmodel='m'",
            b"[[price]",
            b"\xff",
            b"a=" + b"[" * 100_000,
            b"[[price]]\nmodel='m'\nfrom=2026-01-01\ninput=1\ncached_input=1\noutput=1\n" * 2,
        ],
    )
    def test_a_file_that_is_no_table_is_refused_in_words(self, tmp_path: Path, content: bytes) -> None:
        """Whatever is in the file, the error is a ValueError that begins with the file's name."""
        file = tmp_path / "prices.toml"
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"^prices\.toml"):
            PriceTable.load(file)


class TestCost:
    def test_cached_input_has_its_own_rate(self, table: PriceTable) -> None:
        """1,000 tokens of which 900 came from Gemini's cache: 100 at 100, 900 at 10 nano-dollars."""
        assert price_at(table, "gemini-2.5-flash-lite").cost(1000, 0, 900) == Cost(input=19_000)

    def test_more_cached_tokens_than_input_count_as_all_of_it(self, table: PriceTable) -> None:
        """A report that contradicts itself never makes a negative cost."""
        assert price_at(table, "gemini-2.5-flash-lite").cost(10, 0, 99) == Cost(input=100)

    def test_each_part_is_rounded_half_even_once(self) -> None:
        """0.5 goes to 0, 1.5 to 2, 2.5 to 2 nano-dollars."""
        price = Price("m", TODAY, 500_000, 500_000, 500_000)
        assert [price.cost(tokens, 0).input for tokens in (1, 2, 3, 4, 5)] == [0, 1, 2, 2, 2]
        assert price.cost(3, 5) == Cost(2, 2)

    def test_attempts_add_up(self) -> None:
        """The cost of several attempts is the sum of both parts."""
        assert sum((Cost(1, 2), Cost(3, 4)), Cost()) == Cost(4, 6)
        assert (Cost(1, 2) + Cost(3, 4)).total == 10

    @pytest.mark.parametrize(
        ("nano", "six", "nine"),
        [
            (0, "0.000000", "0.000000000"),
            (500, "0.000000", "0.000000500"),
            (1500, "0.000002", "0.000001500"),
            (2500, "0.000002", "0.000002500"),
            (2501, "0.000003", "0.000002501"),
            (170_000, "0.000170", "0.000170000"),
            (999_999_500, "1.000000", "0.999999500"),
            (2_450_000_000, "2.450000", "2.450000000"),
            (10**18, "1000000000.000000", "1000000000.000000000"),
            (-1500, "-0.000002", "-0.000001500"),
        ],
    )
    def test_dollars_are_written_exactly(self, nano: int, six: str, nine: str) -> None:
        """Six decimals rounded half even for headers, nine exact ones for records; never an exponent."""
        assert (format_usd(nano), exact_usd(nano)) == (six, nine)

    def test_spend_adds_up_under_threads(self) -> None:
        """Each caller sees a total of its own that includes its share; nothing is lost, nothing goes down."""
        meter, barrier = SpendMeter(), threading.Barrier(8)
        seen: list[int] = []

        def spend() -> None:
            barrier.wait()
            seen.extend([meter.add(7) for _ in range(500)])

        threads = [threading.Thread(target=spend) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert meter.total() == 8 * 500 * 7
        assert len(set(seen)) == len(seen)
        assert meter.add(-5) == meter.total()


class TestTokenCounter:
    @pytest.mark.parametrize(
        ("text", "tokens"),
        [("", 0), ("hello world", 2), ("<|endoftext|>", 7), ("\ud800", 1), ("a" * 1_000_000, 125_000)],
    )
    def test_any_string_is_counted_as_plain_text(self, counter: TokenCounter, text: str, tokens: int) -> None:
        """Special tokens are words like others, lone surrogates do not crash it, a megabyte is counted in time."""
        assert counter.count_tokens(text) == tokens

    def test_counts_are_those_of_tiktoken(self, counter: TokenCounter, monkeypatch: pytest.MonkeyPatch) -> None:
        """The vocabulary and the way to cut words, read here, are cl100k_base's own."""
        import tiktoken

        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(PROJECT / "data" / "tiktoken"))
        theirs = tiktoken.get_encoding("cl100k_base")
        for text in (
            "Hello, World! it's 12345 o'clock\r\n\n  x",
            "naïve 汉字 \U0001f600 \t\t end ",
            Path(__file__).read_text(),
        ):
            assert counter.count_tokens(text) == len(theirs.encode_ordinary(text))

    def test_counting_in_pieces_is_off_by_less_than_a_thousandth(self, counter: TokenCounter) -> None:
        """Cutting long text into pieces changes the count by a token or two a cut."""
        words = Path(__file__).read_text()[:4000]
        once = counter.count_tokens(words)
        assert counter.count_tokens(words * 40) == pytest.approx(once * 40, rel=0.001)

    @pytest.mark.parametrize(
        ("text", "tokens"),
        [("no figures", 2), ("7", 1), ("in 2026", 4 + 2), ("12345", 2 + 3), ("3.14159", 4 + 3), ("12 345", 3 + 3)],
    )
    def test_an_estimate_has_a_token_for_each_digit(self, counter: TokenCounter, text: str, tokens: int) -> None:
        """As Gemini's tokenizer has; the rest is tiktoken's count."""
        assert counter.estimate_tokens(text) == tokens

    def test_counting_reaches_no_network_whatever_the_environment_says(self, tmp_path: Path) -> None:
        """A fresh process that may not open a connection counts, with tiktoken's own variables set astray."""
        code = (
            "import socket\n"
            "def refuse(*args, **kwargs): raise AssertionError('network')\n"
            "socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse\n"
            "from cost_tracker import TokenCounter\n"
            "import sys; assert 'tiktoken' not in sys.modules\n"
            "print(TokenCounter().count_tokens('hello world'))\n"
        )
        environment = {**os.environ, "TIKTOKEN_CACHE_DIR": str(tmp_path / "none"), "PYTHONPATH": str(PROJECT)}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert (done.stdout, done.stderr) == ("2\n", "")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("content", [None, b"", b"aGVsbG8= 0\n"])
    def test_without_its_vocabulary_it_guesses_and_says_so(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes | None
    ) -> None:
        """A missing or damaged file costs accuracy, never an answer that was paid for."""
        if content is not None:
            (tmp_path / "9b5ad71b2ce5302211f9c61530b329a4922fc6a4").write_bytes(content)
        counter = TokenCounter(tmp_path)
        assert [counter.count_tokens(text) for text in ("", "12345", "\ud800")] == [0, 2, 1]
        assert [record.levelname for record in caplog.records] == ["WARNING"]

    def test_the_vocabulary_is_forgotten_when_nobody_counts(self, clock: FakeClock) -> None:
        """After its time, not before, and read again for the next count."""
        vocabularies, file = Vocabularies(60, monotonic=clock), next(VOCABULARY_DIR.iterdir())
        first = vocabularies.encoding(file)
        clock.advance(59)
        vocabularies.release_if_idle()
        assert vocabularies.encoding(file) is first
        clock.advance(59)
        vocabularies.release_if_idle()
        assert vocabularies.encoding(file) is first
        clock.advance(60)
        vocabularies.release_if_idle()
        assert vocabularies.encoding(file) is not first

    def test_an_unused_vocabulary_is_forgotten_without_being_told_to(self) -> None:
        """A clock of its own looks after it."""
        vocabularies, file = Vocabularies(0.01), next(VOCABULARY_DIR.iterdir())
        first = weakref.ref(vocabularies.encoding(file))
        assert eventually(lambda: first() is None)

    def test_cost_in_dollars_is_the_documented_one(self, counter: TokenCounter) -> None:
        """150 tokens in and 425 out: 0.000015 + 0.000170 = 0.000185 dollars."""
        assert counter.calculate_cost(150, 425) == (0.000015, 0.000170, 0.000185)

    def test_cost_follows_the_price_it_was_built_with(self) -> None:
        """Another model's price can be given."""
        price = Price("m", TODAY, 10**9, 10**9, 2 * 10**9)
        assert TokenCounter(price=price).calculate_cost(1_000_000, 500_000) == (1.0, 1.0, 2.0)


def test_formatting_and_pricing_are_cheap(table: PriceTable) -> None:
    """Both are on the path of every request: together under 50 microseconds even on a busy machine."""
    start = time.perf_counter()
    for number in range(1000):
        format_usd(price_at(table, "gemini-2.5-flash-lite").cost(number, number).total)
    assert (time.perf_counter() - start) / 1000 < 50e-6
