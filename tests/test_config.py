"""Settings: read once, validated whole, documented in three places that agree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mtllm.domain.limits import Limit
from mtllm.project import PROJECT
from mtllm.settings import Settings, SettingsError, default_text, load_settings


def load(**texts: str) -> Settings:
    return load_settings({name.upper(): text for name, text in texts.items()}, env_file=None)


def test_an_empty_environment_gives_the_defaults() -> None:
    """Nothing needs to be set."""
    settings = load()
    assert (settings.host, settings.port, settings.threads) == ("127.0.0.1", 5000, 128)
    assert settings.rate_limits == (Limit(60, 60), Limit(1000, 3600))
    assert settings.google_api_key is None


def test_an_empty_text_is_the_default_except_where_empty_has_a_meaning() -> None:
    """`PORT=` in .env changes nothing; `RATE_LIMITS=` means no limits."""
    assert load(port="").port == 5000
    assert load(rate_limits="").rate_limits == ()
    assert load(cors_origins="").cors_origins == ()


def test_all_problems_are_told_at_once_and_no_value_of_a_secret() -> None:
    """One message names every bad setting."""
    with pytest.raises(SettingsError) as caught:
        load(
            port="x",
            threads="0",
            google_api_key="canary key",
            input_price_per_million="1",
            redis_url="canary://",
            prices_file="none.toml",
        )
    text = str(caught.value)
    for name in ("PORT", "THREADS", "GOOGLE_API_KEY", "INPUT_PRICE_PER_MILLION", "REDIS_URL", "PRICES_FILE"):
        assert f"  {name}" in text
    assert "canary" not in text


@pytest.mark.parametrize(
    "texts",
    [
        {"api_keys": "alice"},
        {"api_keys": "alice:"},
        {"api_keys": "a b:secret"},
        {"api_keys": "alice:one,alice:two"},
        {"api_keys": "alice:same,bob:same"},
        {"api_keys": "admin:secret"},
        {"api_keys": "alice:same", "admin_api_key": "same"},
        {"rate_limits": "60/fortnight"},
        {"gemini_api_endpoint": "127.0.0.1:9100"},
        {"gemini_api_endpoint": "http://127.0.0.1/gemini?key=x"},
        {"gemini_client": "soap"},
        {"gemini_model": "a model"},
        {"database_url": "mysql://x"},
        {"gemini_timeout_seconds": "nan"},
        {"gemini_timeout_seconds": "0"},
        {"daily_budget_usd": "-1"},
        {"ledger_sync": "sometimes"},
        {"prices_file": "none.toml"},
        {"prices_file": "0" * 5000},
    ],
)
def test_bad_values_are_refused(texts: dict[str, str]) -> None:
    """Each with its setting's name."""
    with pytest.raises(SettingsError, match=next(iter(texts)).upper()):
        load(**texts)


def test_nothing_that_offline_logs_should_show_counts_as_a_secret() -> None:
    """The dummy key is masked like any other, so it is no part of the model's name and no word of a prompt."""
    offline = load().offline("http://127.0.0.1:9100")
    assert offline.gemini_model.startswith("offline-")
    assert not any(secret in f"{offline.gemini_model} work offline" for secret in offline.secrets)


def test_keys_are_pairs_and_a_secret_may_hold_colons() -> None:
    """`name:secret`, separated by commas."""
    assert load(api_keys="alice:s:1, bob:s2").api_keys == (("alice", "s:1"), ("bob", "s2"))


def test_relative_paths_are_the_projects(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From any working directory."""
    monkeypatch.chdir(tmp_path)
    assert load().log_dir == PROJECT / "logs"
    assert load(log_dir="/var/log/mtllm").log_dir == Path("/var/log/mtllm")


def test_the_environment_goes_over_the_file(tmp_path: Path) -> None:
    """`.env` is the fallback; a value there is taken as it is written."""
    env_file = tmp_path / ".env"
    env_file.write_text("PORT=1\nTHREADS=7\nADMIN_API_KEY='a$HOME'\n")
    settings = load_settings({"PORT": "2"}, env_file=env_file)
    assert (settings.port, settings.threads, settings.admin_api_key) == (2, 7, "a$HOME")


def test_secrets_are_not_in_the_representation() -> None:
    """Printing the settings shows no secret."""
    settings = load(
        google_api_key="canary1", api_keys="a:canary2", admin_api_key="canary3", redis_url="redis://canary4"
    )
    assert "canary" not in repr(settings)
    assert len(settings.secrets) == 4


def test_offline_has_a_ledger_and_a_model_of_its_own() -> None:
    """Canned answers never mix with paid ones."""
    offline = load(database_url="postgresql://db").offline("http://127.0.0.1:1")
    assert offline.ledger_location == str(PROJECT / "data" / "offline.sqlite3")
    assert offline.gemini_model == "offline-gemini-2.5-flash-lite"
    assert offline.is_offline


def test_env_example_and_readme_list_every_setting_with_its_default() -> None:
    """`.env.example`, the README's table and `Settings` are one list."""
    expected = {name.upper(): default_text(name) for name in Settings.model_fields}
    example = (PROJECT / ".env.example").read_text()
    assert dict(re.findall(r"^([A-Z_]+)=(.*)$", example, re.MULTILINE)) == expected
    table = re.findall(
        r"^\| `([A-Z_]+)` \| (?:`(.*?)`|empty) \| .+ \|$", (PROJECT / "README.md").read_text(), re.MULTILINE
    )
    assert dict(table) == expected


def test_every_setting_is_described() -> None:
    """With its unit, where it has one."""
    assert all(field.description for field in Settings.model_fields.values())


@pytest.mark.parametrize("rate", ["2000000", "0.1234567891"])
def test_a_price_out_of_range_is_refused_at_the_start(rate: str) -> None:
    """Not by a traceback later."""
    with pytest.raises(SettingsError, match="INPUT_PRICE_PER_MILLION"):
        load(input_price_per_million=rate, output_price_per_million="1")


def test_a_relative_sqlite_url_is_the_projects() -> None:
    """As every path in the settings."""
    assert load(database_url="sqlite:///data/x.sqlite3").ledger_location == str(PROJECT / "data/x.sqlite3")
    assert load(database_url="sqlite:////var/x.sqlite3").ledger_location == "/var/x.sqlite3"


def test_offline_takes_the_models_bare_name() -> None:
    """`models/` belongs to Google's paths."""
    assert load(gemini_model="models/m").offline("http://127.0.0.1:1").gemini_model == "offline-m"
