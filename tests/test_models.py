"""What each model takes and gives: `models.toml`, the rules of its entries, and the plans made from them."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import pytest

from mtllm.domain.thinking import ThinkingLevel, ThinkingPlan
from mtllm.gemini.models import (
    DYNAMIC,
    Availability,
    ModelFacts,
    ModelTable,
    TemperatureUse,
    Thinking,
    ThinkingForm,
)
from mtllm.project import PROJECT

pytest.importorskip("hypothesis")
from hypothesis import given
from hypothesis import strategies as st

TODAY = date(2026, 11, 27)
MINIMAL, LOW, MEDIUM, HIGH = ThinkingLevel

FIRST = {
    "name": "'m'",
    "from": "2026-01-01",
    "state": "'current'",
    "temperature": "'used'",
    "output_limit": "65536",
    "thinking": "{ form = 'level', levels = { low = 100, high = 900 }, default = 'low' }",
}


@pytest.fixture(scope="module")
def table() -> ModelTable:
    return ModelTable.load(PROJECT / "models.toml")


def load(folder: Path, *entries: dict[str, str]) -> ModelTable:
    """Load a table of entries whose values are TOML."""
    file = folder / "models.toml"
    file.write_text(
        "".join("[[model]]\n" + "".join(f"{name} = {value}\n" for name, value in entry.items()) for entry in entries)
    )
    return ModelTable.load(file)


class TestShippedTable:
    """What the service knows of the models of today; each line is a fact that a request depends on."""

    @pytest.mark.parametrize(
        ("model", "day", "state", "successor"),
        [
            ("gemini-2.5-flash-lite", TODAY, "closed", "gemini-3.1-flash-lite"),
            ("gemini-2.5-flash", date(2026, 11, 30), "closed", "gemini-3.5-flash-lite"),
            ("gemini-2.5-flash", date(2026, 12, 1), "swapped", "gemini-3.5-flash-lite"),
            ("gemini-2.5-pro", date(2026, 12, 1), "swapped", "gemini-3.8-flash"),
            ("gemini-3.1-flash-lite", date(2026, 5, 6), "preview", ""),
            ("gemini-3.1-flash-lite", TODAY, "current", ""),
            ("gemini-3.5-flash", TODAY, "swapped", "gemini-3.6-flash"),
            ("gemini-2.0-flash", TODAY, "retired", "gemini-3.1-flash-lite"),
        ],
    )
    def test_states_change_on_their_day(
        self, table: ModelTable, model: str, day: date, state: str, successor: str
    ) -> None:
        """The day of an entry is its first."""
        facts = table.facts_of(model, day)
        assert (facts.state, facts.successor) == (state, successor)

    @pytest.mark.parametrize(
        ("model", "asked", "plan"),
        [
            ("gemini-2.5-flash-lite", MINIMAL, ThinkingPlan(None, 0, 0)),
            ("gemini-2.5-flash-lite", HIGH, ThinkingPlan(None, 24576, 24576)),
            ("gemini-2.5-pro", MINIMAL, ThinkingPlan(None, 128, 128)),
            ("gemini-3.1-flash-lite", MINIMAL, ThinkingPlan(MINIMAL, None, 1024)),
            ("gemini-3.8-flash", MINIMAL, ThinkingPlan(LOW, None, 4096)),
            ("gemini-4-argon", MEDIUM, ThinkingPlan(MEDIUM, None, 32768)),
            ("gemini-2.0-flash", HIGH, None),
        ],
    )
    def test_levels_are_sent_as_the_model_wants_them(
        self, table: ModelTable, model: str, asked: ThinkingLevel, plan: ThinkingPlan | None
    ) -> None:
        """A budget, a name, or nothing; a level that a model would refuse with 400 is never sent."""
        assert table.facts_of(model, date(2026, 5, 1) if "2.0" in model else TODAY).plan(asked) == plan

    @pytest.mark.parametrize(
        ("model", "sent"),
        [
            ("gemini-2.5-flash-lite", True),
            ("gemini-3.1-flash-lite", True),
            ("gemini-3.5-flash-lite", False),
            ("gemini-3.8-flash", False),
            ("gemini-4-hydrogen", False),
        ],
    )
    def test_a_temperature_is_sent_where_it_is_used(self, table: ModelTable, model: str, sent: bool) -> None:
        """Where it is ignored it would only split the cache."""
        assert table.facts_of(model, TODAY).sends_temperature is sent

    def test_every_entry_says_where_it_comes_from(self, table: ModelTable) -> None:
        """A fact without source and confidence is not taken in."""
        for model in table.models():
            for facts in table.changes_of(model):
                assert facts.evidence.source, model
                assert facts.evidence.confidence, model

    def test_default_limits_leave_room_for_thoughts(self, table: ModelTable) -> None:
        """Whatever the model and level, our default limit and its thoughts fit into one answer."""
        for model in table.models():
            for facts in table.changes_of(model):
                for level in ThinkingLevel:
                    plan = facts.plan(level)
                    room = plan.room if plan else 0
                    assert facts.terms(level).limit_with_room(2048) == 2048 + room, (model, level)


class TestPlans:
    def test_nobody_thinks_more_than_was_asked(self) -> None:
        """The next lower level; the least only where there is nothing lower."""
        thinking = Thinking(ThinkingForm.LEVEL, ((LOW, 100), (HIGH, 900)))
        assert [thinking.plan(level).level for level in ThinkingLevel] == [LOW, LOW, LOW, HIGH]

    @pytest.mark.parametrize(
        ("form", "least", "off"),
        [(ThinkingForm.BUDGET, 0, True), (ThinkingForm.BUDGET, 128, False), (ThinkingForm.LEVEL, 0, False)],
    )
    def test_only_a_budget_of_nothing_is_off(self, form: ThinkingForm, least: int, off: bool) -> None:
        """A model of levels always thinks."""
        assert Thinking(form, ((MINIMAL, least),)).can_be_off is off

    def test_room_ends_at_what_the_model_can_give(self) -> None:
        """A limit above the model's own would be refused."""
        facts = ModelFacts("m", TODAY, thinking=Thinking(ThinkingForm.LEVEL, ((LOW, 900),)), output_limit=1000)
        assert facts.terms(LOW).limit_with_room(50) == 950
        assert facts.terms(LOW).limit_with_room(500) == 1000

    def test_an_unknown_model_is_sent_what_every_model_takes(self, table: ModelTable) -> None:
        """A temperature, no thinking, no other limit than was asked for."""
        facts = table.facts_of("models/gpt-9", TODAY)
        assert (facts.model, facts.known, facts.state) == ("gpt-9", False, None)
        assert (facts.sends_temperature, facts.plan(HIGH), facts.terms(HIGH).limit_with_room(2048)) == (
            True,
            None,
            2048,
        )


class TestEntries:
    def test_a_later_entry_says_only_what_changes(self, tmp_path: Path) -> None:
        """The rest is kept, but for successor, source, confidence and note, which belong to their entry."""
        change = {"name": "'m'", "from": "2026-06-01", "state": "'retired'"}
        first = FIRST | {"source": "'s'", "confidence": "'reported'", "note": "'n'"}
        table = load(tmp_path, change, first)
        before, after = (table.facts_of("m", day) for day in (date(2026, 5, 31), date(2026, 6, 1)))
        assert (before.state, after.state) == (Availability.CURRENT, Availability.RETIRED)
        assert (after.temperature, after.thinking, after.output_limit) == (TemperatureUse.USED, before.thinking, 65536)
        assert (before.evidence.source, after.evidence.source, after.evidence.confidence) == ("s", "", None)

    def test_a_model_of_next_month_is_one_entry(self, tmp_path: Path) -> None:
        """Nothing is known of it before its day."""
        table = load(tmp_path, FIRST | {"name": "'gemini-5-xenon'", "from": "2026-12-24"})
        assert not table.facts_of("gemini-5-xenon", date(2026, 12, 23)).known
        assert table.facts_of("gemini-5-xenon-001", date(2026, 12, 24)).plan(MINIMAL) == ThinkingPlan(LOW, None, 100)

    @pytest.mark.parametrize(
        ("fields", "told"),
        [
            ({"name": "''"}, "model entry 1: 'name' must be the name of a model"),
            ({"from": "'2026-01-01'"}, "model entry 1 (m): 'from' must be a date such as"),
            ({"from": ""}, "model entry 1 (m): 'from' is missing"),
            ({"state": "'gone'"}, "(m): 'state' must be one of current, preview, closed, swapped, retired"),
            ({"state": ""}, "(m): 'state' is missing"),
            ({"state": "['current']"}, "(m): 'state' must be one of"),
            ({"state": "'swapped'"}, "(m): 'successor' is missing: a swapped model"),
            ({"successor": "'x'"}, "(m): 'successor' must be the name of another model of this file"),
            ({"successor": "'m'"}, "(m): 'successor' must be the name of another model of this file"),
            ({"successor": "7"}, "(m): 'successor' must be a text of one line"),
            ({"temperature": "0.7"}, "(m): 'temperature' must be one of used, ignored, refused"),
            ({"output_limit": "0"}, "(m): 'output_limit' must be a whole number from 1 to"),
            ({"output_limit": "true"}, "(m): 'output_limit' must be a whole number from 1 to"),
            ({"output_limit": "1.5"}, "(m): 'output_limit' must be a whole number from 1 to"),
            ({"thoughts": "1"}, "(m): 'thoughts' is not a field"),
            ({"source": "''"}, "(m): 'source' must be a text of one line"),
            ({"note": '"a\\nb"'}, "(m): 'note' must be a text of one line"),
            ({"confidence": "'sure'"}, "(m): 'confidence' must be one of confirmed, reported, inferred"),
            ({"thinking": "'low'"}, "(m): 'thinking' must be a table with"),
            ({"thinking": "{ form = 'level' }"}, "(m): thinking: 'levels' is missing"),
            ({"thinking": "{ form = 'word', levels = { low = 1 } }"}, "thinking: 'form' must be one of budget, level"),
            ({"thinking": "{ form = 'level', levels = {} }"}, "thinking: 'levels' must be a table of levels"),
            ({"thinking": "{ form = 'level', levels = { much = 1 } }"}, "thinking: 'much' is not one of the levels"),
            (
                {"thinking": "{ form = 'level', levels = { low = -1 } }"},
                "thinking: levels: 'low' must be a whole number",
            ),
            ({"thinking": "{ form = 'level', levels = { low = 65537 } }"}, "levels: 'low' must be a whole number"),
            ({"thinking": "{ form = 'level', levels = { high = 1, low = 2 } }"}, "'levels' must begin with the least"),
            ({"thinking": "{ form = 'level', levels = { low = 2, high = 1 } }"}, "'levels' must begin with the least"),
            (
                {"thinking": "{ form = 'level', levels = { low = 1 }, default = 'high' }"},
                "'default' must be one of low",
            ),
            ({"thinking": "{ form = 'level', levels = { low = 1 }, default = 'dynamic' }"}, "'default' must be one of"),
        ],
    )
    def test_a_mistake_names_file_entry_and_field(self, tmp_path: Path, fields: dict[str, str], told: str) -> None:
        """And says what would be right."""
        entry = {name: value for name, value in (FIRST | fields).items() if value}
        with pytest.raises(ValueError, match=r"^models\.toml: model entry 1") as caught:
            load(tmp_path, entry)
        assert told in str(caught.value)

    def test_two_entries_of_one_day_are_refused(self, tmp_path: Path) -> None:
        """Nobody could say which holds; the one that comes second is named."""
        with pytest.raises(ValueError, match=r"model entry 2 \(m\): 'from' is 2026-01-01 in another entry"):
            load(tmp_path, FIRST, FIRST)

    @pytest.mark.parametrize(
        "content", [b"", b"model = 3", b"[[model]]\n[[price]]", b"[[model]", b"\xff", b"model = [3]"]
    )
    def test_a_file_of_something_else_is_refused(self, tmp_path: Path, content: bytes) -> None:
        """With its name, and never another exception."""
        (tmp_path / "models.toml").write_bytes(content)
        with pytest.raises(ValueError, match=r"^models\.toml"):
            ModelTable.load(tmp_path / "models.toml")


words = st.sampled_from(["gemini", "2.5", "flash", "lite", "pro", "001"])
names = st.lists(words, min_size=1, max_size=5).map("-".join)
days = st.dates(date(2025, 1, 1), date(2027, 12, 31))
entries = st.lists(st.builds(ModelFacts, names, days, st.sampled_from(Availability)), max_size=12)
levels = st.dictionaries(st.sampled_from(ThinkingLevel), st.integers(0, 65536), min_size=1).map(
    lambda found: tuple(zip(sorted(found, key=lambda level: level.rank), sorted(found.values()), strict=True))
)
thoughts = st.builds(Thinking, st.sampled_from(ThinkingForm), levels, st.just(DYNAMIC))


@given(entries, names, days)
def test_facts_are_those_of_the_longest_name_and_the_newest_day(table: list[ModelFacts], model: str, on: date) -> None:
    """Against a model of three lines: the name decides before the day does."""
    known = [facts for facts in table if model == facts.model or model.startswith(facts.model + "-")]
    longest = max((facts.model for facts in known), key=len, default=None)
    begun = [facts for facts in known if facts.model == longest and facts.since <= on]
    found = ModelTable(table).facts_of(model, on)
    assert found.since == max((facts.since for facts in begun), default=date.min)
    assert found in begun or not (begun or found.known)


@given(entries, names, days)
def test_facts_hold_until_the_day_of_the_next_entry(table: list[ModelFacts], model: str, on: date) -> None:
    """Between two days nothing changes but on the day of an entry of that name."""
    facts = ModelTable(table)
    today, tomorrow = facts.facts_of(model, on), facts.facts_of(model, on + timedelta(days=1))
    assert today == tomorrow or tomorrow.since == on + timedelta(days=1)


@given(thoughts, st.sampled_from(ThinkingLevel), st.sampled_from(ThinkingLevel))
def test_more_thinking_asked_for_is_never_less(thinking: Thinking, one: ThinkingLevel, other: ThinkingLevel) -> None:
    """Plans grow with the level, hold the least, and never pass what was asked for."""
    less, more = sorted((one, other), key=lambda level: level.rank)
    assert thinking.levels[0][1] <= thinking.plan(less).room <= thinking.plan(more).room
    plan = thinking.plan(less)
    if thinking.form is ThinkingForm.LEVEL:
        assert plan.level is not None
        assert plan.level == thinking.least or plan.level.rank <= less.rank
    else:
        assert (plan.level, plan.budget) == (None, plan.room)


@given(thoughts, st.integers(1, 10**6), st.integers(1, 10**6), st.sampled_from(ThinkingLevel))
def test_a_limit_with_room_is_bounded(thinking: Thinking, tokens: int, limit: int, level: ThinkingLevel) -> None:
    """Never more than the model gives, never more than limit and thoughts."""
    facts = ModelFacts("m", TODAY, Availability.CURRENT, thinking=thinking, output_limit=limit)
    wanted = tokens + thinking.plan(level).room
    assert facts.terms(level).limit_with_room(tokens) == min(wanted, limit)
