"""Who is calling and who may, over real sockets: addresses behind proxies, keys that change while the service runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from app import Api
from tests.support.scripted_gemini import ScriptedGemini
from tests.support.serving import APP_PY, WAITRESS_SERVE, Answer, Process, eventually, get, post

TEXT = "/api/v1/generate/text"
MakeApp = Callable[..., Api]
Start = Callable[..., Process]


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Callable[..., Process]]:
    """Starts servers with settings by name."""
    running: list[Process] = []

    def begin(how: str, *flags: str, **settings: str) -> Process:
        environ = environment | {name.upper(): text for name, text in settings.items()}
        running.append(Process(how, environ, flags=flags).__enter__())
        return running[-1]

    yield begin
    for process in running:
        process.__exit__()


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    file = folder / "logs" / name
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def asked(process: Process, prompt: str, **headers: str) -> Answer:
    return post(process.port, TEXT, {"prompt": prompt}, **headers)


def operations(folder: Path) -> list[str]:
    """What the error log tells of besides requests."""
    return [str(line["message"]) for line in lines(folder, "api_errors.log") if "event" in line]


# Addresses

PASSES_ON = "--no-clear-untrusted-proxy-headers"
SERVERS = pytest.mark.parametrize(("how", "flags"), [(APP_PY, ()), (WAITRESS_SERVE, (PASSES_ON,))])


@SERVERS
def test_limits_logs_and_ledger_know_a_client_by_the_same_name(
    start: Start, tmp_path: Path, how: str, flags: tuple[str, ...]
) -> None:
    """The address that our own proxy saw: IPv6 by its /64, and whatever the caller wrote before it refused."""
    process = start(how, *flags, trusted_proxies="1", rate_limits="2/hour", admin_api_key="root")
    for forwarded in ("2001:db8:1:2::1", "6.6.6.6, 2001:db8:1:2:ffff::9", "2001:db8:1:2::3"):
        answer = asked(process, forwarded, X_Forwarded_For=forwarded)
    assert answer.status == 429
    assert asked(process, "x", X_Forwarded_For="2001:db8:1:2::1, 203.0.113.9").status == 200
    assert asked(process, "x", X_Forwarded_For="203.0.113.9:4711").status == 200
    assert asked(process, "x", X_Forwarded_For="::ffff:203.0.113.9").status == 429
    usage = get(process.port, "/api/v1/usage?group_by=client", X_API_Key="root").json["groups"]
    assert {group["key"]: group["total_requests"] for group in usage} == {"2001:db8:1:2::/64": 2, "203.0.113.9": 2}
    assert eventually(lambda: len(lines(tmp_path, "api_requests.log")) == 7)
    clients = [line["client"] for line in lines(tmp_path, "api_requests.log")]
    assert clients == ["2001:db8:1:2::/64"] * 3 + ["203.0.113.9"] * 3 + ["admin"]
    assert operations(tmp_path) == []


def test_without_a_trusted_proxy_the_header_is_nobodys_word(start: Start) -> None:
    """A caller cannot get a fresh limit by claiming another address, even where the server passes the header on."""
    process = start(WAITRESS_SERVE, PASSES_ON, rate_limits="1/hour")
    assert asked(process, "x", X_Forwarded_For="203.0.113.1").status == 200
    assert asked(process, "x", X_Forwarded_For="203.0.113.2", Forwarded="for=203.0.113.3").status == 429


def test_a_server_that_strips_the_header_is_told_of_once(start: Start, tmp_path: Path) -> None:
    """waitress-serve does so unless told otherwise; the log says what to start it with, and the peer counts."""
    process = start(WAITRESS_SERVE, trusted_proxies="1", rate_limits="2/hour")
    statuses = [asked(process, "x", X_Forwarded_For=f"203.0.113.{number}").status for number in range(3)]
    assert statuses == [200, 200, 429]

    assert eventually(lambda: operations(tmp_path))
    (warning,) = operations(tmp_path)
    assert PASSES_ON in warning


# Keys

REREAD = 2.0 + 3.0
"""Seconds within which a changed file counts, and what a busy machine may add."""


def entry(name: str, secret: str, **more: Any) -> str:
    digest = hashlib.sha256(secret.encode()).hexdigest()
    rest = "".join(f"{key} = {json.dumps(value)}\n" for key, value in more.items())
    return f'[[key]]\nname = "{name}"\nsha256 = "{digest}"\n{rest}'


def replace(file: Path, content: str) -> None:
    """Change a file in one step, as tools for secrets do."""
    new = file.with_suffix(".new")
    new.write_text(content)
    new.replace(file)


def status_of(process: Process, secret: str) -> int:
    return get(process.port, "/api/v1/stats", X_API_Key=secret).status


@pytest.mark.long
def test_keys_change_while_the_service_runs(start: Start, tmp_path: Path) -> None:
    """A new key works and an old one stops within 2 s; a broken file changes nothing and is told of once."""
    file = tmp_path / "keys.toml"
    file.write_text(entry("alice", "old"))
    process = start(APP_PY, api_keys_file=str(file), api_keys="bob:named")
    assert [status_of(process, secret) for secret in ("old", "new", "named", "")] == [200, 401, 200, 401]

    replace(file, entry("alice", "new"))
    assert eventually(lambda: status_of(process, "new") == 200, seconds=REREAD)
    assert [status_of(process, secret) for secret in ("old", "named")] == [401, 200]

    replace(file, "[[key]]\nname = 'mallory'\nsha256 = 'short'\ncanary = 1")
    assert eventually(lambda: status_of(process, "new") == 200 and operations(tmp_path))
    assert [status_of(process, secret) for secret in ("new", "named", "old")] == [200, 200, 401]
    (problem,) = operations(tmp_path)
    assert "API_KEYS_FILE" in problem
    assert "short" not in problem

    replace(file, "")
    assert eventually(lambda: status_of(process, "new") == 401, seconds=REREAD)
    assert status_of(process, "named") == 200


def test_a_key_has_limits_and_a_budget_of_its_own(start: Start, tmp_path: Path, gemini: ScriptedGemini) -> None:
    """Both follow the file, and count by the key's name: a new secret for a name is no new allowance."""
    file = tmp_path / "keys.toml"
    replace(file, entry("alice", "old", rate_limits="2/hour") + entry("bob", "b", daily_budget_usd=0.000001))
    process = start(APP_PY, api_keys_file=str(file), rate_limits="100/hour")
    assert [asked(process, "x", X_API_Key="old").status for _ in range(3)] == [200, 200, 429]
    assert asked(process, "x", X_API_Key="b").status == 200, "a hit costs nothing"
    assert asked(process, "y", X_API_Key="b").status == 402
    assert gemini.count == 1

    replace(file, entry("alice", "new", rate_limits="3/hour") + entry("bob", "b"))
    assert eventually(lambda: status_of(process, "new") == 200, seconds=REREAD)
    assert [asked(process, "x", X_API_Key="new").status for _ in range(2)] == [200, 429]
    assert asked(process, "y", X_API_Key="b").status == 200


def test_a_service_whose_keys_file_is_missing_is_closed(start: Start, tmp_path: Path) -> None:
    """It starts, says what is wrong, lets nobody in, and opens when the file comes."""
    file = tmp_path / "keys.toml"
    process = start(APP_PY, api_keys_file=str(file))
    assert asked(process, "x").status == 401
    assert get(process.port, "/health").status == 200
    replace(file, entry("alice", "secret"))
    assert eventually(lambda: status_of(process, "secret") == 200, seconds=REREAD)
    assert eventually(lambda: operations(tmp_path))
    process.signal()
    assert "API_KEYS_FILE" in process.errors()


# What may be done with which key: the table of docs/security.md, through HTTP

NOBODY, WRONG, KEY, ADMIN = None, "wrong", "a-secret", "admin-secret"
OPEN_TO_ALL = (
    "GET /",
    "GET /health",
    "GET /api/v1/health",
    "GET /health/ready",
    "GET /api/v1/health/ready",
    "GET /api/v1/openapi.json",
    "GET /swagger/",
)
WITH_A_KEY = ("POST /api/v1/generate/text", "GET /stats", "GET /api/v1/stats", "GET /usage", "GET /api/v1/usage",
              "GET /metrics", "GET /dashboard",
              "POST /api/v1/generate/code", "POST /api/v1/classify/text", "POST /v1/chat/completions",
              "POST /api/v1/extract/json",
              "GET /v1/models", "GET /api/v1/me")  # fmt: skip
WITH_ADMINS = ("GET /api/v1/usage/export", "GET /api/v1/usage?group_by=client", "GET /api/v1/usage?group_by=key",
               "GET /api/v1/usage/requests/<request_id>", "DELETE /api/v1/cache")  # fmt: skip


@pytest.fixture
def guarded(make_app: MakeApp) -> FlaskClient:
    """A caller of a service with a key and an admin key."""
    return make_app(api_keys=f"alice:{KEY}", admin_api_key=ADMIN, rate_limits="").test_client()


def outcome(client: FlaskClient, route: str, secret: str | None) -> int:
    method, path = route.replace("<request_id>", "some-id").split()
    headers = {} if secret is None else {"X-API-Key": secret}
    return client.open(path, method=method, headers=headers, json={} if method == "POST" else None).status_code


@pytest.mark.parametrize("route", OPEN_TO_ALL)
def test_what_is_open_is_open_to_all(guarded: FlaskClient, route: str) -> None:
    """Even to one with a wrong key."""
    assert {outcome(guarded, route, secret) for secret in (NOBODY, WRONG, KEY, ADMIN)} == {200}


@pytest.mark.parametrize("route", WITH_A_KEY)
def test_what_needs_a_key_takes_the_admins_too(guarded: FlaskClient, route: str) -> None:
    """401 without a known one."""
    passed = 400 if route.startswith("POST") else 200
    assert [outcome(guarded, route, secret) for secret in (NOBODY, WRONG, KEY, ADMIN)] == [401, 401, passed, passed]


@pytest.mark.parametrize("route", WITH_ADMINS)
def test_what_needs_the_admins_key_takes_no_other(guarded: FlaskClient, route: str) -> None:
    """403 for a valid key that is not the admin's."""
    assert [outcome(guarded, route, secret) for secret in (NOBODY, WRONG, KEY, ADMIN)] == [401, 401, 403, 200]


@pytest.mark.parametrize("route", WITH_ADMINS)
def test_without_an_admin_key_that_is_closed_to_all(make_app: MakeApp, route: str) -> None:
    """Also in an open service, where everything else is open."""
    assert outcome(make_app().test_client(), route, NOBODY) == 403
    keyed = make_app(api_keys=f"alice:{KEY}").test_client()
    assert [outcome(keyed, route, secret) for secret in (NOBODY, KEY)] == [401, 403]


@pytest.mark.parametrize(
    "header", [("Authorization", "Bearer a-secret"), ("Authorization", "Basic OmEtc2VjcmV0"), ("X-API-Key", "a-secret")]
)
def test_a_key_may_be_sent_in_three_ways(guarded: FlaskClient, header: tuple[str, str]) -> None:
    """Bearer, HTTP Basic with any user name, and a header of its own."""
    assert guarded.get("/stats", headers=dict([header])).status_code == 200


def test_every_route_is_in_the_table(make_app: MakeApp) -> None:
    """A new one must be put into it."""
    app = make_app()
    routes = {str(rule.rule) for rule in app.url_map.iter_rules()}
    known = {route.split()[1].partition("?")[0] for route in (*OPEN_TO_ALL, *WITH_A_KEY, *WITH_ADMINS)}
    assert {route for route in routes if not route.startswith(("/swagger/", "/dashboard"))} <= known


# What is said at the start


def test_an_open_service_says_so_once(make_app: MakeApp, capsys: pytest.CaptureFixture[str]) -> None:
    """On standard error, when it is built; with keys it says nothing."""
    make_app()
    assert capsys.readouterr().err.count("No API keys are set") == 1
    make_app(api_keys="alice:a-secret-of-some-length")
    assert capsys.readouterr().err == ""


def test_a_model_without_a_price_is_told_of(make_app: MakeApp, capsys: pytest.CaptureFixture[str]) -> None:
    """Unless the price settings give one."""
    make_app(gemini_model="strange-model", api_keys="alice:a-secret-of-some-length")
    assert "strange-model" in capsys.readouterr().err
    prices = {"input_price_per_million": "1", "output_price_per_million": "2"}
    make_app(gemini_model="strange-model", api_keys="alice:a-secret-of-some-length", **prices)
    assert capsys.readouterr().err == ""
