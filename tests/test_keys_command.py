"""`python -m mtllm keys`: keys that the service takes, in a file that stays its owner's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from mtllm.__main__ import COMMANDS, main
from mtllm.domain.limits import Limit
from mtllm.domain.times import parse_time
from mtllm.project import PROJECT
from mtllm.security.access import ApiKey, KeyRing, parse_keys_file
from mtllm.security.keys_file import KeysFileError, add_key, change_file, expire_key, revoke_key
from tests.support.fakes import FakeClock

Keys = Callable[..., tuple[int, str, str]]
"""Runs `keys` with these arguments on the file at hand; returns status, stdout and stderr."""

DIGESTS = [f"{number:064x}" for number in range(3)]
WRITTEN = f"""\
# Keys of the staging service. Ask Bob before you change them.

# Alice, the data team
[[key]]
name = "alice"
sha256 = "{DIGESTS[0]}"   # since May
rate_limits = "5/minute"
models = [
  "gemini-2.5-flash",  # dear
]

# Bob
[[key]]
sha256 = '{DIGESTS[1]}'
"name" = "bob"
expires = 2027-01-01
daily_budget_usd = 1.50
# the end
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "secrets" / "keys.toml"


@pytest.fixture
def keys(file: Path, capsys: pytest.CaptureFixture[str]) -> Keys:
    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(["keys", *arguments, "--file", str(file)])
        return status, *capsys.readouterr()

    return run


def ring_of(file: Path, clock: Callable[[], float] = lambda: 0.0) -> KeyRing:
    def refuse(problem: str) -> None:
        raise AssertionError(problem)

    return KeyRing({}, file, clock=clock, on_problem=refuse)


def names_in(text: str) -> list[str]:
    return [key.name for key in parse_keys_file(text.encode()).values()]


class TestAdd:
    def test_the_secret_is_shown_once_and_opens_the_service(self, keys: Keys, file: Path) -> None:
        """Alone on stdout, for a pipe; the file has its digest."""
        status, secret, told = keys("add", "alice")
        assert (status, secret.count("\n"), len(secret)) == (0, 1, 44)
        assert secret.strip() not in told + file.read_text()
        assert ring_of(file).identify(secret.strip()) == ApiKey("alice")

    def test_two_secrets_are_never_the_same(self, keys: Keys) -> None:
        assert keys("add", "a")[1] != keys("add", "b")[1]

    def test_limits_budgets_models_and_end_are_the_key_s(self, keys: Keys, file: Path) -> None:
        """As the service reads them."""
        options = ["--rate-limits", "5/minute;9/hour", "--daily-budget-usd", "0.50", "--monthly-budget-usd", "1e1"]
        _, secret, _ = keys("add", "a", *options, "--models", "gemini-a, gemini-b", "--expires", "2027-01-31")
        assert ring_of(file).identify(secret.strip()) == ApiKey(
            "a",
            (Limit(5, 60), Limit(9, 3600)),
            500_000_000,
            monthly_budget=10 * 10**9,
            models=("gemini-a", "gemini-b"),
            expires=parse_time("2027-01-31"),
        )

    @pytest.mark.parametrize("name", ["", "a b", "admin", 'x"\n[[key]]', "a" * 65])
    def test_a_name_that_the_service_would_refuse_is_not_written(self, keys: Keys, file: Path, name: str) -> None:
        """One such name would void the whole file."""
        status, secret, told = keys("add", name)
        assert (status, secret, file.exists()) == (1, "", False)
        assert "name" in told

    def test_a_name_that_is_taken_is_refused(self, keys: Keys, file: Path) -> None:
        """By this file or by API_KEYS."""
        keys("add", "alice")
        before = file.read_text()
        status, _, told = keys("add", "alice")
        assert (status, file.read_text()) == (1, before)
        assert "alice" in told
        with pytest.raises(ValueError, match="name"):
            change_file(file, lambda text: text, taken=["alice"])

    @pytest.mark.parametrize(
        "option", [("--rate-limits", "many"), ("--daily-budget-usd", "-1"), ("--expires", "soon"), ("--what", "x")]
    )
    def test_a_wrong_option_ends_with_status_2(self, keys: Keys, file: Path, option: tuple[str, str]) -> None:
        """And writes nothing."""
        with pytest.raises(SystemExit) as ended:
            keys("add", "a", *option)
        assert (ended.value.code, file.exists()) == (2, False)

    def test_what_was_in_the_file_stays_as_it_was(self) -> None:
        """To the letter, comments and all."""
        added = add_key(WRITTEN, {"name": '"carol"', "sha256": f'"{DIGESTS[2]}"'})
        assert added.startswith(WRITTEN)
        assert names_in(added) == ["alice", "bob", "carol"]


class TestRevoke:
    def test_a_key_goes_with_its_comment_and_all_else_stays(self) -> None:
        """The head of the file too."""
        left = revoke_key(WRITTEN, "alice")
        assert left == WRITTEN[: WRITTEN.index("# Alice")] + WRITTEN[WRITTEN.index("# Bob") :]
        assert names_in(revoke_key(left, "bob")) == []
        assert revoke_key(left, "bob").startswith("# Keys of the staging service.")

    def test_an_added_key_that_is_revoked_leaves_no_trace(self) -> None:
        """But for the empty line that stood before it."""
        added = add_key(WRITTEN, {"name": '"carol"', "sha256": f'"{DIGESTS[2]}"'})
        assert revoke_key(added, "carol") == WRITTEN + "\n"

    def test_a_key_that_is_not_there_is_told(self, keys: Keys, file: Path) -> None:
        """As is a file; neither is made."""
        assert (keys("revoke", "bob")[0], file.parent.exists()) == (1, False)
        keys("add", "alice")
        status, _, told = keys("revoke", "bob")
        assert (status, "bob" in told) == (1, True)


class TestExpire:
    def test_a_key_ends_when_it_is_said(self, keys: Keys, file: Path) -> None:
        """A request at that very moment is refused; one before is not."""
        _, secret, _ = keys("add", "alice")
        keys("expire", "alice", "--at", "2027-01-31T12:00:00+01:00")
        clock = FakeClock(parse_time("2027-01-31T11:00:00Z") - 1)
        ring = ring_of(file, clock)
        assert ring.identify(secret.strip()) is not None
        clock.advance(1)
        assert ring.identify(secret.strip()) is None

    def test_without_a_time_it_is_over_at_once(self, keys: Keys, file: Path) -> None:
        """`--never` takes the end away again."""
        _, secret, _ = keys("add", "alice", "--expires", "2999-01-01")
        keys("expire", "alice")
        assert "(over)" in keys("list")[1]
        keys("expire", "alice", "--never")
        assert ring_of(file).identify(secret.strip()) == ApiKey("alice")

    @pytest.mark.parametrize(("name", "others"), [("alice", "bob"), ("bob", "alice")])
    def test_only_that_line_changes(self, name: str, others: str) -> None:
        """An end that was there gives way; comments and other keys keep their lines."""
        changed = expire_key(WRITTEN, name, parse_time("2028-02-03"))
        new = [line for line in changed.splitlines() if line not in WRITTEN.splitlines()]
        gone = [line for line in WRITTEN.splitlines() if line not in changed.splitlines()]
        assert new == ["expires = 2028-02-03T00:00:00Z"]
        assert gone == ([] if name == "alice" else ["expires = 2027-01-01"])
        ends = {key.name: key.expires for key in parse_keys_file(changed.encode()).values()}
        assert ends[name] == parse_time("2028-02-03")
        assert ends[others] == (parse_time("2027-01-01") if others == "bob" else None)

    def test_a_last_line_without_an_end_gets_one(self) -> None:
        """Editors leave such files."""
        changed = expire_key(WRITTEN.rstrip("\n").removesuffix("\n# the end"), "bob", 0.0)
        assert changed.endswith("daily_budget_usd = 1.50\nexpires = 1970-01-01T00:00:00Z\n")


class TestList:
    def test_every_key_with_what_it_may(self, keys: Keys, file: Path) -> None:
        """A line each, by name; never a digest."""
        file.parent.mkdir()
        file.write_text(WRITTEN)
        status, shown, _ = keys("list")
        headings, alice, bob = (line.split("  ") for line in shown.splitlines())
        assert (status, headings[0]) == (0, "name")
        assert [cell.strip() for cell in alice if cell] == ["alice", "5 in 60 s", "gemini-2.5-flash", "never"]
        assert [cell.strip() for cell in bob if cell][:3] == ["bob", "the service's", "1.5"]
        assert DIGESTS[0] not in shown


class TestTheFile:
    @pytest.mark.parametrize(
        "content",
        [
            f'key = [{{name = "alice", sha256 = "{DIGESTS[0]}"}}]',
            f'[["key"]]\nname = "alice"\nsha256 = "{DIGESTS[0]}"\n',
            f'[[key]]\nname = "alice"\nsha256 = "{DIGESTS[0]}"\n"expires" = 2027-01-01\n',
        ],
    )
    def test_a_file_in_another_style_is_left_alone(self, keys: Keys, file: Path, content: str) -> None:
        """What cannot be changed safely is told, not tried."""
        file.parent.mkdir()
        file.write_text(content)
        status, _, told = keys("expire", "alice")
        assert (status, file.read_text(), "by hand" in told) == (1, content, True)

    def test_a_broken_file_is_left_alone(self, keys: Keys, file: Path) -> None:
        """Somebody is at work on it."""
        file.parent.mkdir()
        file.write_text("[[key")
        assert [keys(*command)[0] for command in (("add", "a"), ("revoke", "a"), ("list",))] == [1, 1, 1]
        assert file.read_text() == "[[key"

    def test_a_new_file_is_its_owner_s_alone(self, keys: Keys, file: Path) -> None:
        keys("add", "alice")
        assert file.stat().st_mode & 0o777 == 0o600

    def test_permissions_and_a_link_stay(self, keys: Keys, file: Path, tmp_path: Path) -> None:
        """The service that reads it may be another user, and the path a link into a volume."""
        file.parent.mkdir()
        real = tmp_path / "real.toml"
        real.write_text(WRITTEN)
        real.chmod(0o640)
        file.symlink_to(real)
        assert keys("revoke", "bob")[0] == 0
        assert (file.is_symlink(), real.stat().st_mode & 0o777, names_in(real.read_text())) == (True, 0o640, ["alice"])

    def test_a_change_that_fails_leaves_the_file_and_nothing_beside_it(self, file: Path) -> None:
        """Neither half a file nor a lock."""

        def fail(_: str) -> str:
            raise KeysFileError("no")

        file.parent.mkdir()
        file.write_text(WRITTEN)
        with pytest.raises(KeysFileError):
            change_file(file, fail)
        with pytest.raises(ValueError, match="TOML"):
            change_file(file, lambda _: "[[key")
        assert (file.read_text(), list(file.parent.iterdir())) == (WRITTEN, [file])

    @pytest.mark.skipif(sys.platform == "win32", reason="there is no flock on Windows")
    def test_changes_at_once_are_all_made(self, file: Path) -> None:
        """Six processes add a key each; none overwrites what another wrote."""
        command = [sys.executable, "-m", "mtllm", "keys", "add", "--file", str(file)]
        runs = [
            subprocess.Popen([*command, f"k{number}"], cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for number in range(6)
        ]
        secrets = [run.communicate()[0].decode().strip() for run in runs]
        ring = ring_of(file)
        assert [ring.identify(secret) for secret in secrets] == [ApiKey(f"k{number}") for number in range(6)]


class TestTheCommand:
    @pytest.mark.parametrize(("arguments", "status"), [([], 2), (["what"], 2), (["--help"], 0)])
    def test_help_says_what_there_is(
        self, arguments: list[str], status: int, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(arguments) == status
        told = "".join(capsys.readouterr())
        assert all(name in told for name in COMMANDS)

    @pytest.mark.parametrize("name", sorted(COMMANDS))
    def test_each_command_explains_itself(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        """By its own name."""
        with pytest.raises(SystemExit) as ended:
            main([name, "--help"])
        assert ended.value.code == 0
        assert f"python -m mtllm {name}" in capsys.readouterr().out

    def test_without_a_file_it_says_which_setting_names_one(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("API_KEYS_FILE", "")
        assert main(["keys", "list"]) == 1
        assert "API_KEYS_FILE" in capsys.readouterr().err

    def test_the_file_of_the_settings_is_the_one(
        self, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """With the names of API_KEYS taken."""
        monkeypatch.setenv("API_KEYS_FILE", str(file))
        monkeypatch.setenv("API_KEYS", "bob:s3cret-key-of-bob")
        assert [main(["keys", "add", name]) for name in ("alice", "bob")] == [0, 1]
        secret = capsys.readouterr().out.strip()
        assert names_in(file.read_text()) == ["alice"]
        assert file.read_text().count(sha256(secret.encode()).hexdigest()) == 1
