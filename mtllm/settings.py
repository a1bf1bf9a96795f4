"""Reads the settings from the environment over `.env` into one frozen object, and names every problem at once.

The name of a setting is its field's name in capitals. `.env.example` and the README's table list the same names with
the same defaults; a test holds the three together.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from mtllm import env_file as dotenv
from mtllm.domain.completion import FallbackReason
from mtllm.domain.limits import Limit, parse_limits
from mtllm.domain.thinking import ThinkingLevel
from mtllm.domain.times import find_zone
from mtllm.project import PROJECT, project_path

MIB = 1024 * 1024
DEFAULT_RATE_LIMITS = "60/minute;1000/hour"
MODEL_NAME = r"[A-Za-z0-9._/-]{1,100}"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
OFFLINE_PREFIX = "offline-"
TOY_SUFFIX = "-toy"
OFFLINE_LEDGER = "offline.sqlite3"
_OFFLINE_KEY = "none-is-needed-offline"  # masked in logs like any key, so it must be nothing that one would write
_EMPTY_HAS_A_MEANING = frozenset({"rate_limits", "cors_origins", "gemini_fallback_models", "budget_alerts_percent"})


class SettingsError(Exception):
    """The settings cannot be used.

    The text lists every problem, one a line, each once, by the setting's name and without its value.
    """

    def __init__(self, *problems: str) -> None:
        self.problems = tuple(dict.fromkeys(problems))
        super().__init__("\n  ".join(("The settings cannot be used:", *self.problems)))


def _split_names(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _parse_limits(value: object) -> object:
    return parse_limits(value) if isinstance(value, str) else value


def _parse_named_secrets(value: object) -> object:
    """Return `name:secret,name:secret` as pairs; a secret may hold colons, a name may not."""
    if not isinstance(value, str):
        return value
    pairs = [part.strip().partition(":") for part in value.split(",") if part.strip()]
    if any(not _NAME.fullmatch(name) or not secret for name, _, secret in pairs):
        raise ValueError("must be name:secret pairs separated by commas; a name has letters, digits, '.', '_' and '-'")
    return tuple((name, secret) for name, _, secret in pairs)


def _require_distinct_keys(pairs: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    if len({name for name, _ in pairs}) < len(pairs) or len({secret for _, secret in pairs}) < len(pairs):
        raise ValueError("must not repeat a name or a secret")
    if "admin" in dict(pairs):
        raise ValueError("must not name a key 'admin': that is the name of ADMIN_API_KEY")
    return pairs


def _locate_in_project(value: object) -> object:
    return project_path(Path(str(value)).expanduser()) if value else value


def _require_existing(path: Path) -> Path:
    try:
        found = path.is_file()
    except OSError:  # a name that no file can have
        found = False
    if not found:
        raise ValueError("there is no such file")
    return path


def _require_header_safe(secret: str) -> str:
    if not secret.isascii() or not secret.isprintable() or " " in secret:
        raise ValueError("must be printable ASCII without blanks (is a stray character in it?)")
    return secret


def _require_http_url(url: str) -> str:
    if not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", url):
        raise ValueError("must be http:// or https:// with a host, an optional port and an optional path")
    return url.rstrip("/")


def _require_origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    if any(origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^\s/]+|null", origin) for origin in origins):
        raise ValueError(
            "must be origins as browsers send them, https://host or http://host:port, without a path; or *"
        )
    return origins


def _require_database_url(url: str) -> str:
    if not re.match(r"(postgresql|postgres)://.|sqlite:///.", url):
        raise ValueError("must begin with postgresql:// or sqlite:///")
    return url


def _require_redis_url(url: str) -> str:
    if not re.match(r"rediss?://.|unix://.", url):
        raise ValueError("must begin with redis://, rediss:// or unix://")
    return url


def _require_model_names(names: tuple[str, ...]) -> tuple[str, ...]:
    if any(not re.fullmatch(MODEL_NAME, name) for name in names):
        raise ValueError("must be names of models separated by commas")
    return names


def _require_zone(name: str) -> str:
    if find_zone(name) is None:
        raise ValueError("must be the name of a time zone, such as Europe/Berlin (Windows needs the package tzdata)")
    return name


def _parse_aliases(value: object) -> object:
    """Return `name=model,name=model` as pairs."""
    if not isinstance(value, str):
        return value
    pairs = [tuple(part.strip() for part in pair.split("=")) for pair in value.split(",") if pair.strip()]
    if any(len(pair) != 2 or not all(re.fullmatch(MODEL_NAME, name) for name in pair) for pair in pairs):
        raise ValueError("must be name=model pairs separated by commas")
    return tuple(pairs)


def _require_choice(reason: FallbackReason) -> FallbackReason:
    if reason is FallbackReason.SWAPPED:
        raise ValueError("must be unavailable, overloaded, quota or timeout")
    return reason


FallbackOn = Annotated[FallbackReason, AfterValidator(_require_choice)]
ProjectPath = Annotated[Path, BeforeValidator(_locate_in_project)]
Names = Annotated[tuple[str, ...], BeforeValidator(_split_names)]
Secret = Annotated[str, AfterValidator(_require_header_safe)]
Percent = Annotated[int, Field(ge=1, le=1000)]
Count = Annotated[int, Field(ge=1)]
Dollars = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[Decimal, Field(ge=0, le=1_000_000, decimal_places=9, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


class Settings(BaseModel):
    """Everything the service can be told. Sizes are bytes, times are seconds, prices are dollars per million tokens."""

    model_config = ConfigDict(frozen=True, extra="ignore", validate_default=True, hide_input_in_errors=True)

    # Gemini
    google_api_key: Secret | None = Field(
        None, repr=False, description="Key of the Gemini API; without it and without --offline, tasks answer 503"
    )
    gemini_model: Annotated[str, Field(pattern=f"^{MODEL_NAME}$")] = Field(
        "gemini-2.5-flash-lite", description="Model that answers"
    )
    gemini_fallback_models: Annotated[Names, AfterValidator(_require_model_names)] = Field(
        ("gemini-3.1-flash-lite",), description="Models asked in turn when GEMINI_MODEL is not served; empty = none"
    )
    gemini_fallback_on: Annotated[tuple[FallbackOn, ...], BeforeValidator(_split_names)] = Field(
        (FallbackReason.UNAVAILABLE,),
        description="For what the next one is asked: unavailable, overloaded, quota, timeout",
    )
    gemini_models_allowed: Annotated[Names, AfterValidator(_require_model_names)] = Field(
        (), description="Models that a request may name beside those above"
    )
    chat_model_aliases: Annotated[tuple[tuple[str, str], ...], BeforeValidator(_parse_aliases)] = Field(
        (), description="Other names for models, as clients of other services write them: gpt-4o=MODEL,..."
    )
    gemini_thinking: ThinkingLevel = Field(
        ThinkingLevel.MINIMAL,
        description="How much a model thinks for callers who do not say: minimal (the least it has), low, medium, high",
    )
    models_file: Annotated[ProjectPath, AfterValidator(_require_existing)] = Field(
        Path("models.toml"), description="Dated table of what each model takes and gives"
    )
    gemini_api_endpoint: Annotated[str, AfterValidator(_require_http_url)] | None = Field(
        None, description="Another server that speaks Gemini's protocol, a path allowed; empty = Google's"
    )
    gemini_client: Literal["sdk", "rest"] = Field(
        "sdk", description="How Gemini is asked: through google-generativeai, or over plain JSON (less memory and time)"
    )
    gemini_timeout_seconds: Seconds = Field(
        30, description="Deadline of a whole request with retries; for streams of the first byte and each gap (s)"
    )
    gemini_max_attempts: Annotated[int, Field(ge=1, le=10)] = Field(
        4, description="Calls to Gemini that one request may make"
    )
    gemini_max_concurrency: Count | None = Field(
        None, description="Calls to Gemini at once; empty = half of the server's threads"
    )
    gemini_queue_seconds: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] = Field(
        5, description="How long a request waits for one of them; 0 = refused at once (s)"
    )
    gemini_max_wait_seconds: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] = Field(
        5, description="Most that one request waits because Gemini asks to; more is told its caller (s)"
    )
    stream_max_seconds: Seconds = Field(300, description="Longest life of a stream (s)")
    drain_seconds: Seconds = Field(30, description="Longest wait for requests in flight after SIGTERM (s)")
    # Prices
    input_price_per_million: Rate | None = Field(
        None, description="Overrides the price table, with OUTPUT_PRICE_PER_MILLION ($ per million tokens)"
    )
    output_price_per_million: Rate | None = Field(
        None, description="Overrides the price table, with INPUT_PRICE_PER_MILLION ($ per million tokens)"
    )
    prices_file: Annotated[ProjectPath, AfterValidator(_require_existing)] = Field(
        Path("prices.toml"), description="Dated price table"
    )
    # Server of `python app.py`
    host: str = Field("127.0.0.1", min_length=1, description="Address that python app.py listens on")
    port: Annotated[int, Field(ge=0, le=65_535)] = Field(
        5000, description="Port that python app.py listens on; 0 = a free one"
    )
    threads: Annotated[int, Field(ge=1, le=1024)] = Field(
        128, description="Threads that may wait for Gemini, under waitress however it is started"
    )
    # Response cache
    response_cache_size: Count = Field(500, description="Answers kept")
    response_cache_ttl_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        1800, description="Life of a kept answer; 0 = keep none (s)"
    )
    response_cache_max_bytes: Count = Field(64 * MIB, description="Memory for kept answers (bytes)")
    response_cache_stale_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        0, description="How long an expired answer may still serve while Gemini fails (s)"
    )
    cache_scope: Literal["shared", "key"] = Field(
        "shared", description="shared = one cache for all; key = one for each API key"
    )
    # Rate limits and client identity
    rate_limits: Annotated[tuple[Limit, ...], BeforeValidator(_parse_limits)] = Field(
        parse_limits(DEFAULT_RATE_LIMITS), description="N/[K ]unit, several with ';'; empty = none"
    )
    rate_limit_cache_size: Count = Field(10_000, description="Clients whose windows are remembered")
    trusted_proxies: Annotated[int, Field(ge=0, le=16)] = Field(
        0, description="Proxies of one's own in front; X-Forwarded-For is believed for so many hops"
    )
    # CORS
    cors_origins: Annotated[Names, AfterValidator(_require_origins)] = Field(
        ("*",), description="Origins of browser pages that may call, comma-separated; * = any"
    )
    cors_methods: Names = Field(("GET", "POST", "DELETE", "OPTIONS"), description="Methods such pages may use")
    cors_headers: Names = Field(
        ("Content-Type", "Authorization", "X-API-Key", "X-Request-ID", "Cache-Control", "traceparent"),
        description="Request headers such pages may send",
    )
    # Access and budgets
    api_keys: Annotated[
        tuple[tuple[str, Secret], ...], BeforeValidator(_parse_named_secrets), AfterValidator(_require_distinct_keys)
    ] = Field(
        (), repr=False, description="name:secret pairs, comma-separated; empty and no API_KEYS_FILE = open to all"
    )
    api_keys_file: ProjectPath | None = Field(
        None, description="TOML file of keys with limits and budgets, reread when it changes"
    )
    admin_api_key: Secret | None = Field(
        None, repr=False, description="Key for export, cache deletion and figures by client"
    )
    daily_budget_usd: Dollars | None = Field(
        None, description="Most that all requests of a day may cost ($); empty = no budget"
    )
    monthly_budget_usd: Dollars | None = Field(
        None, description="Most that all requests of a calendar month may cost ($); empty = no budget"
    )
    budget_alerts_percent: Annotated[tuple[Percent, ...], BeforeValidator(_split_names)] = Field(
        (80, 100),
        description="Percentages of a budget that are told once a day or month, when they are spent; empty = none",
    )
    budget_webhook_url: Annotated[str, AfterValidator(_require_http_url)] | None = Field(
        None, repr=False, description="Where these are sent too, as JSON by POST, until it is taken"
    )
    budget_webhook_secret: Secret | None = Field(
        None, repr=False, description="Signs them: X-Signature is the hex HMAC-SHA256 of the body"
    )
    budget_timezone: Annotated[str, AfterValidator(_require_zone)] = Field(
        "UTC", description="Where the days and months of budgets begin: the IANA name of a time zone"
    )
    # Request limits and security
    max_request_bytes: Count = Field(MIB, description="Longest request body (bytes)")
    max_prompt_chars: Count = Field(100_000, description="Longest prompt or text (characters)")
    security_mode: Literal["log", "block"] = Field(
        "log", description="block = refuse hostile paths and queries with 403; never prompts"
    )
    # Logs
    log_dir: ProjectPath = Field(Path("logs"), description="Folder of the five log files")
    log_max_bytes: Annotated[int, Field(ge=4096)] = Field(
        10 * MIB, description="Size at which a log file rotates (bytes)"
    )
    log_backup_count: Annotated[int, Field(ge=0, le=1000)] = Field(5, description="Rotated files kept of each log")
    log_retention_days: Annotated[float, Field(gt=0, le=36_500)] = Field(
        90, description="Age at which rotated files are deleted (days)"
    )
    log_prompts: Literal["off", "preview", "full"] = Field("off", description="off = length and keyed hash only")
    slow_request_seconds: Annotated[float, Field(ge=0)] = Field(
        5, description="A request that takes so long is flagged slow (s)"
    )
    # State on disk and elsewhere
    cache_dir: ProjectPath = Field(Path("cache"), description="Folder of the kept answers; may be deleted at any time")
    data_dir: ProjectPath = Field(Path("data"), description="Folder of the ledger")
    database_url: Annotated[str, AfterValidator(_require_database_url)] | None = Field(
        None, repr=False, description="postgresql://... for a ledger shared by machines; empty = SQLite in DATA_DIR"
    )
    ledger_sync: Literal["full", "normal"] = Field(
        "full", description="full = settled rows survive a power cut; normal = only a killed process"
    )
    usage_retention_days: Annotated[float, Field(gt=0, le=36_500)] = Field(
        400, description="Age at which ledger rows are pruned (days)"
    )
    redis_url: Annotated[str, AfterValidator(_require_redis_url)] | None = Field(
        None, repr=False, description="redis://... to share cache and limits between processes; empty = each its own"
    )

    def offline(self, endpoint: str, toy: str = "") -> Settings:
        """Return these settings for an emulator at `endpoint`: a dummy key, models that say so, its own ledger.

        `toy` is the one model of an emulator with a language model of its own.
        """
        database = f"sqlite:///{self.data_dir / OFFLINE_LEDGER}"
        return self.model_copy(
            update={
                "google_api_key": _OFFLINE_KEY,
                "gemini_model": toy or offline_name(self.gemini_model),
                "gemini_fallback_models": () if toy else tuple(map(offline_name, self.gemini_fallback_models)),
                "gemini_models_allowed": () if toy else tuple(map(offline_name, self.gemini_models_allowed)),
                "chat_model_aliases": tuple(
                    (name, toy or offline_name(model)) for name, model in self.chat_model_aliases
                ),
                "gemini_api_endpoint": endpoint,
                "database_url": database,
            }
        )

    @property
    def models_allowed(self) -> tuple[str, ...]:
        """Return the models that a request may name, where its key is not bound to others."""
        return tuple(dict.fromkeys((self.gemini_model, *self.gemini_fallback_models, *self.gemini_models_allowed)))

    @property
    def is_offline(self) -> bool:
        """Return whether a local emulator answers."""
        return self.gemini_model.startswith(OFFLINE_PREFIX)

    @property
    def is_toy(self) -> bool:
        """Return whether a small language model of the emulator answers, and nothing canned."""
        return self.is_offline and self.gemini_model.endswith(TOY_SUFFIX)

    @property
    def ledger_location(self) -> str:
        """Return where the ledger is: a postgresql:// URL or the path of the SQLite file."""
        if self.database_url is None:
            return str(self.data_dir / "ledger.sqlite3")
        if self.database_url.startswith("sqlite:///"):
            return str(PROJECT / self.database_url.removeprefix("sqlite:///"))
        return self.database_url

    @property
    def secrets(self) -> tuple[str, ...]:
        """Return every secret value, for masking."""
        single = (
            *(self.google_api_key, self.admin_api_key, self.database_url, self.redis_url),
            *(self.budget_webhook_url, self.budget_webhook_secret),
        )
        return tuple(filter(None, single)) + tuple(secret for _, secret in self.api_keys)


def offline_name(model: str) -> str:
    """Return the name under which the emulator answers for a model."""
    return f"{OFFLINE_PREFIX}{model.rpartition('/')[2]}"


def default_text(field: str) -> str:
    """Return the default of a setting as one would write it in `.env`."""
    default: object = Settings.model_fields[field].default
    if default is None:
        return ""
    if field == "rate_limits":
        return DEFAULT_RATE_LIMITS
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


def load_settings(environ: Mapping[str, str] | None = None, *, env_file: Path | None = PROJECT / ".env") -> Settings:
    """Return the settings of `environ` over those of `env_file`.

    By default these are the process's environment and the project's `.env`, if it exists. Raises SettingsError with
    every problem in one text.
    """
    own = os.environ if environ is None else environ
    names = [field.upper() for field in Settings.model_fields]
    problems, from_file = [], dict[str, str]()
    try:
        from_file = dotenv.read_env_file(env_file) if env_file else {}
    except dotenv.UnreadableEnvError as unreadable:
        problems.append(str(unreadable))
    problems += dotenv.find_misspelled(from_file, own, names)
    given = dict(_read_given(_merge(from_file, own)))
    problems += [*_find_half_a_price(given), *_find_admin_key_given_away(given)]
    try:
        settings = Settings.model_validate(given)
    except ValidationError as error:
        problems += map(_word_problem, error.errors(include_url=False, include_context=False, include_input=False))
    if problems:
        raise SettingsError(*problems)
    return settings


def require_writable_folders(settings: Settings) -> None:
    """Raise SettingsError with every folder of the settings that can be neither written nor made."""
    fields = ["log_dir", "cache_dir"] + ["data_dir"] * (settings.database_url is None)
    problems = [
        f"{field.upper()}: the folder {blocked} cannot be written by this user; change its rights or name another"
        for field in fields
        if (blocked := _find_blocked(getattr(settings, field)))
    ]
    if problems:
        raise SettingsError(*problems)


def _find_blocked(folder: Path) -> Path | None:
    """Return the folder, or the nearest above it that is there, when nothing can be written into it."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return None if there.is_dir() and os.access(there, os.W_OK | os.X_OK) else there


def _merge(from_file: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment over the file; an empty variable, as compose files pass them on, hides nothing of it."""
    return {**from_file, **{name: text for name, text in environ.items() if text.strip() or name not in from_file}}


def _find_half_a_price(given: Mapping[str, str]) -> Iterator[str]:
    if ("input_price_per_million" in given) != ("output_price_per_million" in given):
        yield "INPUT_PRICE_PER_MILLION, OUTPUT_PRICE_PER_MILLION: must both be set, or neither"


def _find_admin_key_given_away(given: Mapping[str, str]) -> Iterator[str]:
    admin_key = given.get("admin_api_key")
    secrets = [part.partition(":")[2].strip() for part in given.get("api_keys", "").split(",")]
    if admin_key and admin_key in secrets:
        yield "ADMIN_API_KEY, API_KEYS: must not hold the same secret"


def _read_given(texts: Mapping[str, str]) -> list[tuple[str, str]]:
    named = ((field, (texts.get(field.upper()) or "").strip()) for field in Settings.model_fields)
    return [
        (field, text)
        for field, text in named
        if text or (field in _EMPTY_HAS_A_MEANING and texts.get(field.upper()) is not None)
    ]


def _word_problem(problem: Any) -> str:
    message = problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    name = str(problem["loc"][0]).upper() + ": " if problem["loc"] else ""
    return f"{name}{message}"
