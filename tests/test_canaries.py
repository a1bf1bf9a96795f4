"""Nothing to leak: secrets, prompts, answers and Gemini's words are found nowhere but where they belong.

A service is used in every way that could spill them; then every byte that it left behind is searched.
"""

from __future__ import annotations

import base64
import hashlib
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app import Api
from mtllm.settings import load_settings
from tests.support.raw_http import RawAnswer, head, posted, send
from tests.support.scripted_gemini import ScriptedGemini, garbage, invalid_key, status, stream, text
from tests.support.serving import APP_PY, Process

TEXT = "/api/v1/generate/text"
GOOGLE_KEY = "AIzaSyCANARYgoogle0123456789012345678901"
NAMED_KEY = "CANARY-alice-secret"
FILE_KEY = "CANARY-filed-secret"
ADMIN_KEY = "CANARY-admin-secret"
PROMPT = "CANARYprompt about the sea"
ANSWER = "CANARYanswer about the waves"
UPSTREAM = "CANARYupstream says no"

REPLIES = (text(ANSWER), stream("CANARYanswer ", "in parts"), status(500, UPSTREAM), garbage(b"CANARYupstream{"))
FAILURES = (*REPLIES[2:], invalid_key(), status(400, UPSTREAM), status(403, UPSTREAM), status(404, UPSTREAM))


def credentials(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def keys_file(folder: Path) -> Path:
    file = folder / "keys.toml"
    file.write_text(f'[[key]]\nname = "filed"\nsha256 = "{hashlib.sha256(FILE_KEY.encode()).hexdigest()}"\n')
    return file


SECRETS_IN_REQUEST_LINES = [
    f"/health?key={GOOGLE_KEY}&api_key=CANARY1&password=CANARY2&access_token=CANARY3",
    "/nowhere?sk=sk-proj-CANARY456789&next=Bearer%20CANARY.token",
    "/nowhere/sk-proj-CANARY456789/password=CANARY5",
    "/nowhere?q=' or 1=1 -- &token=CANARY6".replace(" ", "%20"),
    "/.env?secret=CANARY7&token%253DCANARY8",
    "/api/v1/usage?from=password%3DCANARY9&key=CANARY9",
    "/api/v1/usage?group_by=token%3DCANARY9",
]
SECRETS_IN_FIELDS = [
    ("Authorization: Bearer CANARYbearer-0123456789",),
    (f"Authorization: Basic {credentials('CANARYuser', 'CANARYpassword')}",),
    ("X-API-Key: CANARYkey",),
    (f"X-API-Key: {NAMED_KEY}x",),
    ("Cookie: session=CANARYcookie; token=CANARYcookie2", f"X-API-Key: {NAMED_KEY}"),
    ("User-Agent: curl/8 (Authorization: Bearer CANARYagent1234)", f"X-API-Key: {NAMED_KEY}"),
    ("User-Agent: sqlmap token=CANARYscanner", f"X-API-Key: {NAMED_KEY}"),
    ("X-Request-ID: sk-proj-ECHOED-request", f"X-API-Key: {NAMED_KEY}"),
    ("Referer: http://u:CANARYreferer@h/", "X-Forwarded-For: CANARYforwarded", f"X-API-Key: {NAMED_KEY}"),
    ("Origin: http://ECHOED", "Access-Control-Request-Headers: CANARYheader"),
]

PAGES = [
    *("/metrics", "/dashboard", "/stats", "/api/v1/health/ready", "/swagger/", "/api/v1/openapi.json"),
    *("/api/v1/usage?group_by=client", "/api/v1/usage/export", "/api/v1/usage/export?format=jsonl"),
]


class Spill:
    """Whatever a service let out: what it answered, wrote and stored."""

    def __init__(self) -> None:
        self.answers: list[RawAnswer] = []
        self.output = ""
        self.files: dict[Path, bytes] = {}

    def heard(self) -> str:
        """Heads and bodies of all answers."""
        return "\n".join(f"{a.status}\n{a.headers}\n{a.body.decode('utf-8', 'replace')}" for a in self.answers)

    def stored(self, folder: str) -> str:
        """Names and contents of all files below a folder."""
        found = [f"{path}\n{data.decode('latin-1')}" for path, data in self.files.items() if folder in path.parts]
        assert found, f"nothing in {folder}"
        return "\n".join(found)

    def logged(self, name: str) -> str:
        return next(data.decode() for path, data in self.files.items() if path.name == name)


def used(environment: dict[str, str], tmp_path: Path, gemini: ScriptedGemini) -> Spill:
    """Everything that one run of `python app.py` lets out when it is used in every way."""
    spill = Spill()
    access = {"API_KEYS": f"alice:{NAMED_KEY}", "ADMIN_API_KEY": ADMIN_KEY, "GOOGLE_API_KEY": GOOGLE_KEY}
    files = {"API_KEYS_FILE": str(keys_file(tmp_path)), "GEMINI_MAX_ATTEMPTS": "1", "RATE_LIMITS": ""}
    with Process(APP_PY, environment | access | files) as process:

        def say(data: bytes) -> None:
            spill.answers.append(send(process.port, data))

        def ask(body: object, *fields: str, key: str = NAMED_KEY) -> None:
            say(posted(TEXT, json.dumps(body).encode(), f"X-API-Key: {key}", *fields))

        gemini.answers(*REPLIES[:2])
        ask({"prompt": PROMPT})
        ask({"prompt": f"{PROMPT} streamed", "stream": True})
        ask({"prompt": PROMPT}, key=FILE_KEY)
        for number, failing in enumerate(FAILURES):
            gemini.answers(failing)
            ask({"prompt": f"{PROMPT} {number}"}, key=(NAMED_KEY, FILE_KEY, ADMIN_KEY)[number % 3])
        ask({"prompt": PROMPT, "ECHOED": "CANARYvalue", "language": ["CANARYvalue"]})
        say(posted(TEXT, b'{"prompt": CANARYbody', f"X-API-Key: {NAMED_KEY}"))
        say(posted(TEXT, b'{"prompt": "CANARYbody"}', f"Authorization: Bearer {NAMED_KEY}", "Content-Length: 99")[:-9])
        for target in SECRETS_IN_REQUEST_LINES:
            say(head(f"GET {target}", "Connection: close"))
            say(head(f"GET {target}", "Connection: close", f"X-API-Key: {ADMIN_KEY}"))
        for fields in SECRETS_IN_FIELDS:
            say(head("GET /api/v1/stats", "Connection: close", *fields))
            say(posted(TEXT, b"{}", *fields))
        for page in PAGES:
            basic = f"Authorization: Basic {credentials('anybody', ADMIN_KEY)}"
            say(head(f"GET {page}", "Connection: close", basic))
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        spill.output = process.output()
    places = [path for name in ("logs", "data", "cache") for path in (tmp_path / name).rglob("*")]
    spill.files = {path: path.read_bytes() for path in places if path.is_file()}
    return spill


@pytest.fixture(scope="module")
def spill(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spill]:
    """One run, searched by all tests."""
    folder = tmp_path_factory.mktemp("canaries")
    with ScriptedGemini() as gemini:
        places = {f"{name.upper()}_DIR": str(folder / name) for name in ("cache", "data")}
        environment = places | {"LOG_DIR": str(folder / "logs"), "GEMINI_API_ENDPOINT": gemini.url}
        yield used(environment, folder, gemini)


def test_the_run_was_worth_searching(spill: Spill) -> None:
    """Every kind of answer was given, every key was used, and what was masked left its mark."""
    assert {answer.status for answer in spill.answers} >= {200, 400, 401, 404, 502}
    assert {json.loads(line)["client"] for line in spill.logged("api_requests.log").splitlines()} >= {
        "alice",
        "filed",
        "admin",
        "127.0.0.1",
    }
    assert spill.logged("security_audit.log").count("[redacted]") >= 2


@pytest.mark.parametrize("folder", ["logs", "data"])
def test_logs_and_ledger_hold_none(spill: Spill, folder: str) -> None:
    """Neither a secret nor a word of prompt, answer or Gemini; a request id that looks like a key is masked in logs."""
    assert "CANARY" not in spill.stored(folder)
    assert "ECHOED" not in spill.stored("logs")


def test_the_console_shows_none(spill: Spill) -> None:
    """Standard output and error of the whole run."""
    assert "CANARY" not in spill.output
    assert "Traceback" not in spill.output


def test_the_cache_holds_answers_and_nothing_else(spill: Spill) -> None:
    """That is what it is for; prompts are in it as digests only, and its file names say nothing."""
    stored = spill.stored("cache")
    assert stored.count("CANARY") == stored.count("CANARYanswer") == 2


def test_callers_are_shown_none(spill: Spill) -> None:
    """Headers, bodies and pages show answers to those who asked, and of a request what only its own sender sees."""
    heard = spill.heard()
    assert heard.count("CANARY") == heard.count("CANARYanswer")
    assert sum("CANARY" in answer.body.decode() for answer in spill.answers) == 3
    own = [answer for answer in spill.answers if "ECHOED" in f"{answer.headers}{answer.body.decode()}"]
    assert len(own) == 5  # one bad field, a request id twice, an origin twice


# What a process can be made to do from inside

MakeApp = Callable[..., Api]


def everything_below(folder: Path) -> str:
    return "".join(path.read_text("latin-1") for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("path", [TEXT, "/api/v1/stats"])
def test_a_defect_tells_nobody_its_message(
    make_app: MakeApp,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    path: str,
) -> None:
    """The client gets a sentence, the log the place; the exception's words go nowhere."""

    def fail(*_: object, **__: object) -> None:
        try:
            Path(f"/dev/null/CANARY-{GOOGLE_KEY}").read_text()
        except OSError as cause:
            raise ValueError(f"CANARY {PROMPT} {GOOGLE_KEY}") from cause

    app = make_app()
    monkeypatch.setattr(app.service.completions, "complete", fail)
    monkeypatch.setattr(app.service.ledger, "totals", fail)
    client = app.test_client()
    answer = client.post(path, json={"prompt": PROMPT}) if path == TEXT else client.get(path)
    assert answer.status_code == 500
    assert "CANARY" not in f"{answer.headers}{answer.text}"
    app.service.close()
    assert "ValueError at test_canaries.py" in (tmp_path / "logs" / "api_errors.log").read_text()
    assert "CANARY" not in everything_below(tmp_path)
    assert "CANARY" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(("mode", "words"), [("off", 0), ("preview", 1), ("full", 400)])
def test_prompts_and_answers_are_shown_as_far_as_allowed_and_never_their_secrets(
    make_app: MakeApp, gemini: ScriptedGemini, tmp_path: Path, mode: str, words: int
) -> None:
    """Off: the prompt's length and keyed hash. Preview: how they begin. Full: all of it, redacted."""
    prompt = f"my password: CANARY1, my key {GOOGLE_KEY} " + "waves " * 400
    gemini.answers(text("Use token=CANARY2, as in sk-CANARY34567890 " + "shores " * 400))
    app = make_app(log_prompts=mode)
    client = app.test_client()
    for _ in range(2):
        assert client.post(TEXT, json={"prompt": prompt}).status_code == 200
    app.service.close()
    assert "CANARY" not in everything_below(tmp_path / "logs")
    for text_of_line in (tmp_path / "logs" / "api_requests.log").read_text().splitlines():
        line = json.loads(text_of_line)
        assert line["prompt_chars"] == len(prompt)
        assert len(line["prompt_hash"]) == 24
        shown, answered = line.get("prompt", ""), line.get("answer", "")
        assert ("password: [redacted]" in shown, "token=[redacted]" in answered) == (words > 0, words > 0)
        assert min(words, 1) <= shown.count("waves") <= words or words == 1
        assert answered.count("shores") <= words * 10


def test_two_processes_hash_the_same_prompt_differently(make_app: MakeApp, tmp_path: Path) -> None:
    """The hash tells equal prompts of one run; without its key nobody can test a guess."""
    for _ in range(2):
        app = make_app()
        app.test_client().post(TEXT, json={"prompt": PROMPT})
        app.service.close()
    lines = (tmp_path / "logs" / "api_requests.log").read_text().splitlines()
    assert len({json.loads(line)["prompt_hash"] for line in lines}) == 2


def test_settings_show_no_secret() -> None:
    """Not in their repr, which a traceback or a debugger may print."""
    texts = {
        "GOOGLE_API_KEY": GOOGLE_KEY,
        "ADMIN_API_KEY": ADMIN_KEY,
        "API_KEYS": f"alice:{NAMED_KEY}",
        "DATABASE_URL": "postgresql://u:CANARY@h/d",
        "REDIS_URL": "redis://:CANARY@h",
    }
    assert "CANARY" not in repr(load_settings(texts, env_file=None))
