"""Who asks and may they: keys, the access table, and the caller's address."""

from __future__ import annotations

import base64
import os
import threading
from hashlib import sha256
from pathlib import Path

import pytest

from mtllm.domain.errors import Forbidden, Unauthorized
from mtllm.domain.limits import Limit
from mtllm.security.access import (
    Access,
    ApiKey,
    BrokenKeysFile,
    ClientResolver,
    KeyRing,
    access_of,
    authorize,
    parse_keys_file,
    presented_key,
)
from tests.support.fakes import FakeClock


def table(name: str, secret: str, *more: str) -> str:
    """One `[[key]]` table of a keys file."""
    return "\n".join(["[[key]]", f'name = "{name}"', f'sha256 = "{sha256(secret.encode()).hexdigest()}"', *more, ""])


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def problems() -> list[str]:
    return []


class KeysFile:
    """A keys file that is rewritten at moments that differ, however coarse the file system's clock is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._changes = 0

    def write(self, *tables: str) -> None:
        self.path.write_text("\n".join(tables))
        self._changes += 1
        os.utime(self.path, (self._changes, self._changes))


@pytest.fixture
def keys_file(tmp_path: Path) -> KeysFile:
    return KeysFile(tmp_path / "keys.toml")


class TestKeyRing:
    """Keys from API_KEYS and ADMIN_API_KEY."""

    def test_a_secret_is_known_by_its_name(self, problems: list[str]) -> None:
        """Each secret leads to its key, any other to nobody."""
        ring = KeyRing({"alice": "s3cret", "bob": "other"}, None, "root", on_problem=problems.append)
        assert ring.identify("s3cret") == ApiKey("alice")
        assert ring.identify("other") == ApiKey("bob")
        assert ring.identify("root") == ApiKey("admin", admin=True)
        for wrong in (None, "", "s3cre", "s3cret ", "S3CRET", "alice", "ключ", "\ud800"):
            assert ring.identify(wrong) is None

    def test_no_secret_is_kept(self, problems: list[str]) -> None:
        """The ring's memory holds digests only, and what a person may see of it holds not even those."""
        ring = KeyRing({"alice": "canary-secret"}, None, "canary-admin", on_problem=problems.append)
        assert "canary" not in repr(vars(ring))
        assert "canary" not in repr(ring.identify("canary-secret"))

    def test_a_service_is_open_only_without_any_api_keys(self, keys_file: KeysFile, problems: list[str]) -> None:
        """An admin key alone closes no task; a keys file does, even one that cannot be read."""
        assert KeyRing({}, on_problem=problems.append).open
        assert KeyRing({}, None, "root", on_problem=problems.append).open
        assert not KeyRing({"a": "b"}, on_problem=problems.append).open
        assert not KeyRing({}, keys_file.path, on_problem=problems.append).open
        assert len(problems) == 1

    def test_an_admin_secret_among_the_api_keys_is_the_admins(self, problems: list[str]) -> None:
        """The same secret given twice has the greater right."""
        ring = KeyRing({"a": "root"}, None, "root", on_problem=problems.append)
        assert ring.identify("root") == ApiKey("admin", admin=True)


class TestKeysFile:
    """API_KEYS_FILE."""

    def test_limits_and_budget_of_a_key(self) -> None:
        """Limits are parsed; dollars become whole nano-dollars, to the last digit."""
        keys = parse_keys_file(
            (
                table("a", "1", 'rate_limits = "5/minute;9/hour"', "daily_budget_usd = 0.000000001")
                + table("b", "2", 'rate_limits = ""', "daily_budget_usd = 12")
                + table("c", "3")
            ).encode()
        )
        assert list(keys.values()) == [
            ApiKey("a", (Limit(5, 60), Limit(9, 3600)), 1),
            ApiKey("b", (), 12 * 10**9),
            ApiKey("c"),
        ]

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            ("[[key", "TOML"),
            ("\xff", "TOML"),
            ("a = " + "[" * 5000, "TOML"),
            ("key = 3", "key"),
            ("other = 3", "other"),
            (table("a", "1", 'rate_limit = "1/minute"'), "rate_limit"),
            (table("a", "1", 'rate_limits = "many"'), "rate_limits"),
            (table("a", "1", "rate_limits = 5"), "rate_limits"),
            (table("a", "1", "daily_budget_usd = -1"), "daily_budget_usd"),
            (table("a", "1", "daily_budget_usd = nan"), "daily_budget_usd"),
            (table("a", "1", "daily_budget_usd = 1e99999"), "daily_budget_usd"),
            (table("", "1"), "name"),
            (table("a b", "1"), "name"),
            (table("admin", "1"), "name"),
            (table("taken", "1"), "name"),
            (table("a", "1") + table("a", "2"), "name"),
            (table("a", "1") + table("b", "1"), "sha256"),
            ('[[key]]\nname = "a"', "sha256"),
            ('[[key]]\nname = "a"\nsha256 = "plain-canary"', "sha256"),
        ],
    )
    def test_a_broken_file_is_refused_in_words(self, content: str, says: str) -> None:
        """The sentence names what is wrong and shows nothing that could be a secret."""
        with pytest.raises(BrokenKeysFile, match=says) as raised:
            parse_keys_file(content.encode("latin-1"), taken=["taken"])
        assert "canary" not in str(raised.value)
        assert sha256(b"1").hexdigest() not in str(raised.value)

    def test_rotation_without_restart(self, keys_file: KeysFile, clock: FakeClock, problems: list[str]) -> None:
        """A changed file counts within two seconds: new keys open, removed ones don't."""
        keys_file.write(table("a", "old"))
        ring = KeyRing({"fixed": "f"}, keys_file.path, "root", monotonic=clock, on_problem=problems.append)
        assert ring.identify("old") == ApiKey("a")
        keys_file.write(table("a", "new", "daily_budget_usd = 1.5"))
        clock.advance(2)
        assert ring.identify("new") == ApiKey("a", daily_budget=1_500_000_000)
        assert ring.identify("old") is None
        assert ring.identify("f") == ApiKey("fixed")
        assert ring.identify("root") == ApiKey("admin", admin=True)
        assert problems == []

    def test_the_file_is_looked_at_once_a_second(
        self, keys_file: KeysFile, clock: FakeClock, problems: list[str]
    ) -> None:
        """Requests within a second of a look cost no system call."""
        keys_file.write(table("a", "old"))
        ring = KeyRing({}, keys_file.path, monotonic=clock, on_problem=problems.append)
        keys_file.write(table("a", "new"))
        clock.advance(0.9)
        assert ring.identify("new") is None
        clock.advance(0.1)
        assert ring.identify("new") == ApiKey("a")

    def test_a_broken_file_keeps_the_old_keys(self, keys_file: KeysFile, clock: FakeClock, problems: list[str]) -> None:
        """A slip of the editor locks nobody out and is reported once; the repaired file counts again."""
        keys_file.write(table("a", "old"))
        ring = KeyRing({}, keys_file.path, monotonic=clock, on_problem=problems.append)
        keys_file.write("[[key")
        for _ in range(3):
            clock.advance(2)
            assert ring.identify("old") == ApiKey("a")
        assert len(problems) == 1
        keys_file.write(table("a", "new"))
        clock.advance(2)
        assert ring.identify("new") == ApiKey("a")
        keys_file.write("[[key")
        clock.advance(2)
        ring.identify(None)
        assert len(problems) == 2

    def test_a_file_that_was_never_whole_says_that_nobody_gets_in(
        self, keys_file: KeysFile, problems: list[str]
    ) -> None:
        """Not that keys stay, when there are none."""
        KeyRing({}, keys_file.path, on_problem=problems.append)
        assert ["nobody gets in by it" in problem for problem in problems] == [True]

    def test_a_file_that_is_gone_keeps_the_old_keys(
        self, keys_file: KeysFile, clock: FakeClock, problems: list[str]
    ) -> None:
        """Between delete and create of an editor nobody is locked out; the file counts again when it is back."""
        keys_file.write(table("a", "old"))
        ring = KeyRing({}, keys_file.path, monotonic=clock, on_problem=problems.append)
        keys_file.path.unlink()
        for _ in range(3):
            clock.advance(2)
            assert ring.identify("old") == ApiKey("a")
        assert len(problems) == 1
        assert str(keys_file.path) not in problems[0]
        keys_file.write(table("a", "new"))
        clock.advance(2)
        assert ring.identify("new") == ApiKey("a")

    def test_a_ring_whose_file_never_was_whole_lets_nobody_in(
        self, keys_file: KeysFile, clock: FakeClock, problems: list[str]
    ) -> None:
        """Broken means closed, until it is repaired."""
        keys_file.write("oops")
        ring = KeyRing({}, keys_file.path, monotonic=clock, on_problem=problems.append)
        with pytest.raises(Unauthorized):
            authorize(ring, Access.KEY, "new")
        keys_file.write(table("a", "new"))
        clock.advance(2)
        assert authorize(ring, Access.KEY, "new") == ApiKey("a")

    def test_a_name_of_api_keys_is_not_given_twice(self, keys_file: KeysFile, problems: list[str]) -> None:
        """Ledger and limits go by the name, so it must mean one key."""
        keys_file.write(table("a", "two"))
        ring = KeyRing({"a": "one"}, keys_file.path, on_problem=problems.append)
        assert ring.identify("one") == ApiKey("a")
        assert ring.identify("two") is None
        assert "name" in problems[0]

    def test_nobody_waits_for_the_file(self, keys_file: KeysFile, clock: FakeClock) -> None:
        """While one request rereads, others go on with the keys there are."""
        reading, go_on = threading.Event(), threading.Event()

        def slow_report(_: str) -> None:
            reading.set()
            assert go_on.wait(10)

        keys_file.write(table("a", "old"))
        ring = KeyRing({}, keys_file.path, monotonic=clock, on_problem=slow_report)
        keys_file.write("[[key")
        clock.advance(2)
        rereader = threading.Thread(target=ring.identify, args=("old",))
        rereader.start()
        assert reading.wait(10)
        clock.advance(2)
        assert ring.identify("old") == ApiKey("a")
        go_on.set()
        rereader.join(10)


def basic(credentials: str) -> str:
    return "Basic " + base64.b64encode(credentials.encode()).decode()


class TestPresentedKey:
    """How a request carries its secret."""

    @pytest.mark.parametrize(
        ("authorization", "x_api_key", "secret"),
        [
            ("Bearer abc", None, "abc"),
            ("bearer   abc  ", None, "abc"),
            (None, "abc", "abc"),
            (None, " abc ", "abc"),
            ("Basic garbage!", "abc", "abc"),
            ("Bearer one", "two", None),
            ("Bearer one", "", "one"),
            (basic("anyone:abc"), None, "abc"),
            (basic(":a:b:c"), None, "a:b:c"),
            (basic("x:schlüssel"), None, "schlüssel"),
            ("Bearer schlüssel".encode().decode("latin-1"), None, "schlüssel"),
            (None, "schl\xfcssel", "schl\xfcssel"),
        ],
    )
    def test_three_ways(self, authorization: str | None, x_api_key: str | None, secret: str) -> None:
        """Bearer, X-API-Key (which goes first) and the password of Basic, in UTF-8."""
        assert presented_key(authorization, x_api_key) == secret

    @pytest.mark.parametrize(
        "authorization",
        [
            *(None, "", "abc", "Bearer", "Bearer ", "Bearer a b", "Digest abc"),
            *("Basic", "Basic $$$", "Basic /w==", "Basic ÿÿ", basic("nocolon"), basic("a:")),
        ],
    )
    def test_malformed_is_none(self, authorization: str | None) -> None:
        """What cannot be read is no key, and no error either."""
        assert presented_key(authorization, None) is None


class TestAccessTable:
    """What needs which key."""

    @pytest.mark.parametrize(
        ("request_line", "access"),
        [
            ("GET /health", Access.OPEN),
            ("GET /api/v1/health", Access.OPEN),
            ("GET /api/v1/health/ready", Access.OPEN),
            ("GET /api/v1/openapi.json", Access.OPEN),
            ("GET /swagger/", Access.OPEN),
            ("GET /swagger/swagger-ui.css", Access.OPEN),
            ("OPTIONS /api/v1/generate/text", Access.OPEN),
            ("POST /api/v1/generate/text", Access.KEY),
            ("POST /api/v1/generate/code", Access.KEY),
            ("POST /api/v1/classify/text", Access.KEY),
            ("GET /stats", Access.KEY),
            ("GET /api/v1/stats", Access.KEY),
            ("GET /api/v1/usage", Access.KEY),
            ("GET /metrics", Access.KEY),
            ("GET /dashboard", Access.KEY),
            ("GET /api/v1/usage/export", Access.ADMIN),
            ("DELETE /api/v1/cache", Access.ADMIN),
            ("GET /a-route-of-tomorrow", Access.KEY),
            ("GET /healthy", Access.KEY),
        ],
    )
    def test_by_route(self, request_line: str, access: Access) -> None:
        """Health and API descriptions are open, export and cache deletion the admin's, all else needs a key."""
        method, path = request_line.split()
        assert access_of(method, path) is access

    def test_figures_by_client_are_the_admins(self) -> None:
        """Who spends how much is nobody else's business."""
        assert access_of("GET", "/api/v1/usage", group_by="client") is Access.ADMIN
        assert access_of("GET", "/api/v1/usage", group_by="day") is Access.KEY


RINGS = {
    "open": KeyRing({}, on_problem=print),
    "open with admin": KeyRing({}, None, "root", on_problem=print),
    "keys": KeyRing({"alice": "a"}, on_problem=print),
    "keys and admin": KeyRing({"alice": "a"}, None, "root", on_problem=print),
}


class TestAuthorize:
    """Keys against the table."""

    @pytest.mark.parametrize(
        ("ring", "secret", "name"),
        [
            ("open", None, None),
            ("open", "whatever", None),
            ("open with admin", None, None),
            ("open with admin", "root", "admin"),
            ("keys", "a", "alice"),
            ("keys and admin", "a", "alice"),
            ("keys and admin", "root", "admin"),
        ],
    )
    def test_tasks(self, ring: str, secret: str | None, name: str | None) -> None:
        """Tasks are for key holders, and for all where no keys are configured."""
        key = authorize(RINGS[ring], Access.KEY, secret)
        assert (key.name if key else None) == name

    @pytest.mark.parametrize("ring", ["keys", "keys and admin"])
    @pytest.mark.parametrize("secret", [None, "", "wrong"])
    @pytest.mark.parametrize("access", [Access.KEY, Access.ADMIN])
    def test_missing_or_wrong_is_401(self, ring: str, secret: str | None, access: Access) -> None:
        """Who nobody knows is asked for a key; who sent one is told that it is not known."""
        with pytest.raises(Unauthorized, match="is not known" if secret else "is required"):
            authorize(RINGS[ring], access, secret)

    @pytest.mark.parametrize("ring", ["open with admin", "keys and admin"])
    def test_the_admin_key_opens_all(self, ring: str) -> None:
        """The admin may, and in an open service too a wrong admin key is 401."""
        assert authorize(RINGS[ring], Access.ADMIN, "root") == ApiKey("admin", admin=True)
        with pytest.raises(Unauthorized):
            authorize(RINGS[ring], Access.ADMIN, "wrong")

    @pytest.mark.parametrize(
        ("ring", "secret"), [("keys and admin", "a"), ("keys", "a"), ("open", None), ("open", "x")]
    )
    def test_admin_matters_are_403_for_others(self, ring: str, secret: str | None) -> None:
        """A valid key that is not the admin's, or no admin key configured, is forbidden, in an open service too."""
        with pytest.raises(Forbidden):
            authorize(RINGS[ring], Access.ADMIN, secret)

    @pytest.mark.parametrize("secret", [None, "a", "wrong"])
    def test_open_asks_nobody(self, secret: str | None) -> None:
        """Health answers whatever key comes along."""
        assert authorize(RINGS["keys"], Access.OPEN, secret) is None


class TestClientResolver:
    """Whose request it is, by address."""

    @pytest.mark.parametrize(
        ("peer", "client"),
        [
            ("203.0.113.9", "203.0.113.9"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
            ("2001:DB8::1", "2001:db8::/64"),
            ("::ffff:203.0.113.9", "203.0.113.9"),
            ("fe80::1%eth0", "fe80::/64"),
            ("", "unknown"),
            (None, "unknown"),
            ("localhost", "unknown"),
            ("999.1.1.1", "unknown"),
            ("x" * 10_000, "unknown"),
        ],
    )
    def test_the_peer(self, peer: str | None, client: str) -> None:
        """IPv4 as it is, mapped IPv6 as its IPv4, IPv6 by /64, all else `unknown`."""
        assert ClientResolver(0, pytest.fail).client(peer, None) == client

    def test_addresses_of_one_household_are_one_client(self) -> None:
        """Changing the lower half of an IPv6 address makes no new client."""
        resolver = ClientResolver(0, pytest.fail)
        assert resolver.client("2001:db8::1", None) == resolver.client("2001:db8::ffff:1", None)
        assert resolver.client("2001:db8::1", None) != resolver.client("2001:db8:0:1::1", None)

    def test_forwarded_headers_of_strangers_are_not_believed(self) -> None:
        """Without trusted proxies the header says nothing."""
        assert ClientResolver(0, pytest.fail).client("203.0.113.9", "198.51.100.1") == "203.0.113.9"

    @pytest.mark.parametrize(
        ("proxies", "forwarded_for", "client"),
        [
            (1, "198.51.100.1", "198.51.100.1"),
            (1, "6.6.6.6, 198.51.100.1", "198.51.100.1"),
            (2, "6.6.6.6, 198.51.100.1, 10.0.0.2", "198.51.100.1"),
            (2, "198.51.100.1", "10.0.0.1"),
            (1, "198.51.100.1:4711", "198.51.100.1"),
            (1, "[2001:db8::1]:4711", "2001:db8::/64"),
            (1, '"[2001:db8::1]"', "2001:db8::/64"),
            (1, "2001:db8::1", "2001:db8::/64"),
            (1, "::ffff:198.51.100.1", "198.51.100.1"),
            (1, "198.51.100.1,", "10.0.0.1"),
            (1, "unknown", "10.0.0.1"),
            (1, "6.6.6.6, <script>", "10.0.0.1"),
            (1, "x" * 100_000, "10.0.0.1"),
            (1, ",", "10.0.0.1"),
        ],
    )
    def test_hops_count_from_the_right(self, proxies: int, forwarded_for: str, client: str) -> None:
        """What one's own proxies appended is believed, what stands left of it is not; garbage leaves the peer."""
        assert ClientResolver(proxies, pytest.fail).client("10.0.0.1", forwarded_for) == client

    def test_one_warning_when_the_header_does_not_arrive(self, problems: list[str]) -> None:
        """The server may strip the header: that is said once, and the peer counts."""
        resolver = ClientResolver(1, problems.append)
        assert [resolver.client("10.0.0.1", None) for _ in range(3)] == ["10.0.0.1"] * 3
        assert len(problems) == 1
        assert "--no-clear-untrusted-proxy-headers" in problems[0]

    def test_a_probe_from_within_warns_of_nothing(self, problems: list[str]) -> None:
        """Once the header has arrived, a request without it is a health probe from beside the proxy."""
        resolver = ClientResolver(1, problems.append)
        resolver.client("10.0.0.1", "198.51.100.1")
        assert resolver.client("127.0.0.1", None) == "127.0.0.1"
        assert problems == []
