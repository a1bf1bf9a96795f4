"""The start: whatever `.env` and the environment hold is read, or told in words, all at once, under every server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mtllm.project import PROJECT
from mtllm.settings import Settings, SettingsError, load_settings, require_writable_folders

LINES = "GOOGLE_API_KEY=AIza-key\nPORT=5001\n"


@pytest.fixture
def env_file(tmp_path: Path) -> Path:
    """Where a test writes its `.env`."""
    return tmp_path / ".env"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_file_is_read_in_the_encodings_that_programs_write(env_file: Path, encoding: str, ending: str) -> None:
    """`echo ... > .env` in Windows PowerShell writes UTF-16, Notepad a byte order mark; the first line counts too."""
    env_file.write_bytes(("# café\n" * (encoding != "utf-8-sig") + LINES).replace("\n", ending).encode(encoding))
    settings = load_settings({}, env_file=env_file)
    assert (settings.google_api_key, settings.port) == ("AIza-key", 5001)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ("PORT=1\n# café\n".encode("latin-1"), "line 2 is not UTF-8; save the file as UTF-8"),
        (LINES.encode("utf-16-le"), "save the file as UTF-8"),
        (b"\xff\xfeG\0O\0O", "save the file as UTF-8"),
    ],
)
def test_a_file_in_another_encoding_is_told_with_all_else(env_file: Path, data: bytes, told: str) -> None:
    """A sentence that says what to do, beside the other problems, and quotes nothing."""
    env_file.write_bytes(data)
    with pytest.raises(SettingsError) as caught:
        load_settings({"THREADS": "0"}, env_file=env_file)
    problems = "\n".join(caught.value.problems)
    assert told in problems
    assert "THREADS" in problems


@pytest.mark.parametrize(
    ("name", "meant"),
    [("RATE_LIMIT", "RATE_LIMITS"), ("ADMIN_KEY", "ADMIN_API_KEY"), ("GOOGLE_API_KY", "GOOGLE_API_KEY")],
)
def test_a_misspelled_name_in_the_file_ends_the_start(env_file: Path, name: str, meant: str) -> None:
    """An operator who believes in a limit that is none is worse off than one whose service does not start."""
    env_file.write_text(f"{name}=canary\n")
    with pytest.raises(SettingsError, match=f"{name}: is no setting; did you mean {meant}") as caught:
        load_settings({}, env_file=env_file)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(("name", "meant"), [("API_KEY", "API_KEYS"), ("RATE_LIMIT", "RATE_LIMITS")])
def test_a_misspelled_name_of_our_families_in_the_environment_ends_it_too(name: str, meant: str) -> None:
    """`API_KEY=` for `API_KEYS=` would leave the service open."""
    with pytest.raises(SettingsError, match=f"did you mean {meant}"):
        load_settings({name: "x"}, env_file=None)


@pytest.mark.parametrize("name", ["PATH", "HOME", "PGPORT", "GEMINI_API_KEY", "API_URL", "HOSTNAME", "PORTS"])
def test_other_programs_variables_are_left_alone(name: str) -> None:
    """The environment is shared."""
    load_settings({name: "x"}, env_file=None)


def test_every_setting_may_stand_in_the_file(env_file: Path) -> None:
    """No setting's name counts as a misspelling, and names of other programs may stand there."""
    env_file.write_text("".join(f"{name.upper()}=\n" for name in Settings.model_fields) + "TZ=UTC\nCOMPOSE_FILE=x\n")
    load_settings({}, env_file=env_file)


def test_an_empty_variable_hides_nothing_of_the_file(env_file: Path) -> None:
    """Compose files hand on `API_KEYS=` where nothing is set; that must not open a service that .env closes."""
    env_file.write_text("API_KEYS=bob:s3cret-key\nRATE_LIMITS=5/minute\n")
    settings = load_settings({"API_KEYS": "", "RATE_LIMITS": " "}, env_file=env_file)
    assert (settings.api_keys, len(settings.rate_limits)) == ((("bob", "s3cret-key"),), 1)


@pytest.mark.parametrize("origin", ["example.com", "https://example.com/", "//example.com", "https://a.example/path"])
def test_an_origin_is_what_a_browser_sends(origin: str) -> None:
    """Scheme, host and port; with anything else no page would ever be let in."""
    with pytest.raises(SettingsError, match="CORS_ORIGINS"):
        load_settings({"CORS_ORIGINS": origin}, env_file=None)


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As a shell would have it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_settings({"DATA_DIR": "~/data"}, env_file=None).data_dir == tmp_path / "data"


def test_folders_that_cannot_be_made_are_told_together(tmp_path: Path) -> None:
    """A file in the way is told by name; a folder that is not there yet is no problem."""
    (tmp_path / "file").touch()
    settings = load_settings(
        {"LOG_DIR": f"{tmp_path}/file/logs", "CACHE_DIR": f"{tmp_path}/new/cache", "DATA_DIR": f"{tmp_path}/file"},
        env_file=None,
    )
    with pytest.raises(SettingsError) as caught:
        require_writable_folders(settings)
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["LOG_DIR", "DATA_DIR"]


SERVERS = [
    ([sys.executable, "app.py", "--port", "0"], 2),
    ([str(Path(sys.executable).parent / "waitress-serve"), "--port=0", "app:app"], 2),
    ([str(Path(sys.executable).parent / "gunicorn"), "--bind=127.0.0.1:0", "app:app"], 3),
]


@pytest.mark.parametrize(("command", "status"), SERVERS, ids=["app.py", "waitress-serve", "gunicorn"])
def test_every_server_ends_with_all_problems(command: list[str], status: int) -> None:
    """Status 2; 3 under gunicorn, which is the one that ends its master instead of starting workers without end."""
    if not shutil.which(command[0]):
        pytest.skip(f"needs {Path(command[0]).name}")
    environ = os.environ | {"RATE_LIMIT": "5/minute", "THREADS": "8", "GEMINI_CLIENT": "soap"}
    done = subprocess.run(command, cwd=PROJECT, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status, done.stderr
    assert "did you mean RATE_LIMITS" in done.stderr
    assert "GEMINI_CLIENT: " in done.stderr
    assert "Traceback" not in done.stderr


def test_the_version_is_told() -> None:
    """`python app.py --version`."""
    done = subprocess.run(
        [sys.executable, "app.py", "--version"], cwd=PROJECT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.startswith("Multi-Task LLM API ")) == (0, True)


@pytest.mark.parametrize("script", ["app.py", "test_unit.py"])
def test_a_start_without_the_packages_says_which_command_installs_them(script: str) -> None:
    """A sentence and exit status 2, no traceback; -S is a Python without any package."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = [sys.executable, "-S", str(PROJECT / script)]
    ended = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert ended.stderr.startswith("Not installed: flask,")
    assert f"pip install -r {PROJECT / 'requirements.txt'}" in ended.stderr
    assert "Traceback" not in ended.stderr
