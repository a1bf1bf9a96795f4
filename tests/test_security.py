"""What security.py finds, masks and counts."""

from __future__ import annotations

import time

import pytest

import security
from security import (
    MAX_EVIDENCE,
    MAX_INSPECTED,
    BurstDetector,
    Finding,
    hostile,
    inspect,
    redact,
)
from tests.fakes import FakeClock

BROWSER = "Mozilla/5.0 (X11; Linux x86_64; rv:127.0) Gecko/20100101 Firefox/127.0"


def kinds(path: str = "/", query: str = "", user_agent: str = BROWSER) -> set[str]:
    return {finding.kind for finding in inspect(path, query, user_agent)}


class TestInspect:
    """Paths, queries and user agents."""

    @pytest.mark.parametrize(
        ("path", "kind"),
        [
            ("/a/../../etc/passwd", "path_traversal"),
            ("/a/..\\..\\windows\\win.ini", "path_traversal"),
            ("/..;/manager", "path_traversal"),
            ("/..\xc0\xaf..\xc0\xafetc/passwd", "path_traversal"),
            ("/..\ufffd\ufffd..\ufffd\ufffdetc/passwd", "path_traversal"),
            ("/.env", "probing_path"),
            ("/wp-admin/", "probing_path"),
            ("/.git/config", "probing_path"),
            ("/phpMyAdmin/", "probing_path"),
            ("/cgi-bin/x", "probing_path"),
            ("/x/<script>alert(1)</script>", "script_injection"),
            ("/x/1' or '1'='1", "sql_injection"),
            ("/x/${jndi:ldap://h/a}", "command_injection"),
            ("/x\0.png", "encoded_attack"),
        ],
    )
    def test_hostile_paths(self, path: str, kind: str) -> None:
        """An attack in a path is found by its kind and refused in block mode."""
        assert kind in kinds(path)
        assert hostile(inspect(path, "", BROWSER))

    @pytest.mark.parametrize(
        ("query", "kind"),
        [
            ("file=../../etc/passwd", "path_traversal"),
            ("id=1+or+1%3D1", "sql_injection"),
            ("id=1;drop+table+users", "sql_injection"),
            ("user[$ne]=a", "sql_injection"),
            ("q=<img+src=x+onerror=alert(1)>", "script_injection"),
            ("ip=1.1.1.1;cat+/etc/passwd", "command_injection"),
            ("lang=en%0d%0aSet-Cookie:+a=b", "header_injection"),
            ("a=1&b=2&q=%3Cscript%3E", "script_injection"),
            ("<script>alert(1)</script>", "script_injection"),
        ],
    )
    def test_hostile_queries(self, query: str, kind: str) -> None:
        """An attack in a query is found by its kind and refused in block mode."""
        assert kind in kinds(query=query)
        assert hostile(inspect("/", query, BROWSER))

    @pytest.mark.parametrize(
        ("path", "query"),
        [
            ("/%252e%252e/%252e%252e/data", ""),
            ("/%c0%ae%c0%ae/etc", ""),
            ("/%u002e%u002e/etc", ""),
            ("/", "q=%253Cscript%253Ealert(1)"),
            ("/", "q=%25253Cscript%25253Ealert(1)"),
        ],
    )
    def test_an_attack_that_was_encoded_to_evade_is_told_twice(self, path: str, query: str) -> None:
        """Needless encoding is a finding of its own beside what it hid."""
        found = kinds(path, query)
        assert "encoded_attack" in found
        assert found & {"path_traversal", "script_injection"}

    def test_decoding_ends(self) -> None:
        """What stays encoded after three rounds reaches no parser, and isn't followed further."""
        assert kinds(query="q=%2525252525253Cscript%2525252525253E") == set()

    @pytest.mark.parametrize(
        "user_agent",
        [
            "sqlmap/1.7",
            "Mozilla/5.0 (Nikto/2.5)",
            "nmap scripting engine",
            "masscan/1.3",
            "DirBuster",
            "OWASP ZAP/2.14",
        ],
    )
    def test_scanners_are_noted_and_not_refused(self, user_agent: str) -> None:
        """A scanner's name is logged; block mode refuses paths and queries only."""
        findings = inspect("/health", "", user_agent)
        assert [(finding.kind, finding.severity) for finding in findings] == [("scanner_user_agent", "medium")]
        assert not hostile(findings)

    def test_a_payload_in_the_user_agent_is_grave(self) -> None:
        """Shellshock and its like are told from a mere name."""
        (finding,) = inspect("/", "", "() { :;}; /bin/sh")
        assert (finding.kind, finding.severity) == ("scanner_user_agent", "high")

    @pytest.mark.parametrize("user_agent", ["", "-", "curl/8.5.0", "python-requests/2.32", "Zapier", "SQLite-Browser"])
    def test_plain_clients_are_nobodys_concern(self, user_agent: str) -> None:
        """Neither tools nor names that merely resemble a scanner's are noted."""
        assert inspect("/api/v1/stats", "", user_agent) == ()

    @pytest.mark.parametrize(
        "question",
        [
            "What+does+'+OR+1=1+--+do+in+a+login+form?",
            "how+is+<script>alert(1)</script>+prevented",
            "%E4%BB%80%E4%B9%88%E6%98%AF+'+or+1=1+--",
            "what+is+../../etc/passwd+in+a+url",
            "O'Reilly+and+Sons",
            "1+or+2+bedrooms",
            "select+a+plan",
            "what+is+'+or+1=1",
            "SELECT+a+FROM+t+WHERE+x+=+'1'+--+comment",
        ],
    )
    def test_a_question_about_an_attack_is_none(self, question: str) -> None:
        """Prose is spared, whatever it quotes and in whatever script."""
        assert inspect("/", f"q={question}", BROWSER) == ()

    def test_one_kind_is_told_once(self) -> None:
        """Ten attacks of a kind in one query are one finding."""
        assert len(inspect("/", "&".join(["q=<script>alert(1)"] * 10), BROWSER)) == 1

    def test_a_long_target_is_noted_and_both_its_ends_are_looked_at(self) -> None:
        """Padding does not hide an attack at the end, and is itself told."""
        query = "a=" + "x" * 3 * MAX_INSPECTED + "&q=<script>alert(1)</script>"
        assert kinds(query=query) == {"oversized_target", "script_injection"}
        assert not hostile(inspect("/", "a=" + "+" * 3 * MAX_INSPECTED, BROWSER))


class TestEvidence:
    """What a finding shows."""

    def test_it_is_bounded_and_printable(self) -> None:
        """Control characters and length never get from a request into the log."""
        query = "q=%1b[31m%00%0a" + "z" * 500 + "%3Cscript%3Ealert(1)%3C/script%3E" + "y" * 500
        findings = inspect("/\x1b\0", query, "sqlmap\r\n" + "x" * 5000)
        assert len(findings) >= 3
        for finding in findings:
            assert finding.evidence.isprintable()
            assert 0 < len(finding.evidence) <= MAX_EVIDENCE

    def test_it_shows_the_attack_and_no_secret(self) -> None:
        """A key beside an attack is masked, be it cut by the excerpt or not."""
        for padding in range(0, 120, 7):
            value = "x" * padding + "AIzaSyD4-canary-canary-canary'+or+1=1--+token=canary-canary"
            (finding,) = inspect("/", f"q=1'+or+1=1+--+{value}", BROWSER)
            assert "or 1=1" in finding.evidence
            assert "canary" not in finding.evidence


MEGABYTE = 1 << 20


@pytest.mark.parametrize(
    "piece",
    [
        "'",
        "<",
        "<a ",
        "../",
        "%25",
        "' or ",
        "(",
        "a ",
        "%c0",
        "/*",
        "1,",
        "select ",
        "\ufdfa",
        "key=",
        "bearer ",
        "://",
        '="\\"',
    ],
)
def test_megabytes_of_anything_cost_little(piece: str) -> None:
    """Adversarial repetition hangs neither detection nor masking; the bound only guards against hanging."""
    text = piece * (MEGABYTE // len(piece))
    started = time.perf_counter()
    inspect("/" + text, "q=" + text, text)
    redact(text[: MEGABYTE // 4])
    assert time.perf_counter() - started < 10


def test_the_part_looked_at_is_bounded() -> None:
    """Each part's rules see `MAX_INSPECTED` characters at most, however long the part is."""
    hidden = "x" * MAX_INSPECTED + "<script>alert(1)</script>" + "x" * MAX_INSPECTED
    assert kinds("/" + hidden, "q=" + hidden, hidden) == {"oversized_target"}


class TestRedact:
    """Masking of credentials."""

    @pytest.mark.parametrize(
        "text",
        [
            "AIzaSyCANARYCANARYCANARYCANARYCANARYCAN",
            "see sk-proj-CANARYCANARY and go",
            "key%3DCANARY",
            "?key=CANARY&a=1",
            "%3Fkey%3DCANARY%26a%3D1",
            "https://h/p?access_token=CANARY",
            "password=CANARY&x=1",
            '{"password": "CANARY", "x": 1}',
            '{"password": "CAN\\"CANARY", "x": 1}',
            "{'client_secret': 'CANARY'}",
            "api-key: CANARY",
            "X-API-Key: CANARY",
            "Authorization: Bearer CANARY",
            "{'Authorization': 'Basic CANARY'}",
            "Proxy-Authorization: Digest CANARY",
            "sent bearer CANARY.CANARY-CANARY_x",
            "Bearer%20CANARY",
            "Basic dXNlcjpDQU5BUlk6CANARY=",
            "Cookie: session=CANARY; theme=CANARY",
            "Set-Cookie: id=CANARY; HttpOnly",
            "eyJCANARYCANARY.eyJCANARY.CANARY-_x",
            "postgresql://user:CANARY@db/ledger",
            "ghp_CANARYCANARYCANARYCANARY",
            "AKIACANARYCANARYCANARY",
            "xoxb-CANARYCANARY",
            "sig=CANARY",
            "PASSWORD = CANARY",
            "GOOGLE_API_KEY=CANARY",
            "token%253DCANARY",
        ],
    )
    def test_secrets_are_masked(self, text: str) -> None:
        """Nothing of a secret is left, and masking twice changes nothing more."""
        masked = redact(text)
        assert "CANARY" not in masked
        assert security.MASK in masked
        assert redact(masked) == masked

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "/api/v1/generate/text",
            "explain the basic concepts of risk-assessment",
            "max_output_tokens=5",
            '{"input_tokens": 12, "output_tokens": 3}',
            "keyboard: a monkey types",
            "https://example.com/a?b=c",
            BROWSER,
        ],
    )
    def test_the_rest_is_left_alone(self, text: str) -> None:
        """Ordinary text passes unchanged."""
        assert redact(text) == text

    def test_what_surrounds_a_secret_stays(self) -> None:
        """Only the value goes, so that the line can still be read."""
        assert redact("GET /x?a=1&token=abc&b=2") == "GET /x?a=1&token=[redacted]&b=2"
        assert redact('{"secret": "a", "n": 1}') == '{"secret": "[redacted]", "n": 1}'


class TestBursts:
    """Clients that keep failing."""

    @pytest.fixture
    def clock(self) -> FakeClock:
        return FakeClock()

    @pytest.fixture
    def detector(self, clock: FakeClock) -> BurstDetector:
        return BurstDetector(window=60, max_clients=3, monotonic=clock)

    @pytest.mark.parametrize(
        ("status", "kind", "threshold"),
        [(401, "repeated_unauthorized", 5), (404, "not_found_burst", 20), (429, "rate_limit_burst", 20)],
    )
    def test_a_burst_is_told_once(self, detector: BurstDetector, status: int, kind: str, threshold: int) -> None:
        """The answer that completes a burst yields the finding, and those after it none."""
        told = [detector.observe("a", status) for _ in range(3 * threshold)]
        assert [index for index, finding in enumerate(told) if finding] == [threshold - 1]
        finding = told[threshold - 1]
        assert isinstance(finding, Finding)
        assert finding.kind == kind
        assert not hostile([finding])

    def test_any_window_counts(self, detector: BurstDetector, clock: FakeClock) -> None:
        """A burst need not begin with a minute: what matters is that its answers lie within one window."""
        detector.observe("a", 401)
        clock.advance(59)
        assert [detector.observe("a", 401) for _ in range(3)] == [None] * 3
        clock.advance(30)
        assert detector.observe("a", 401) is None
        assert detector.observe("a", 401)

    def test_a_burst_that_goes_on_is_told_once_a_window(self, detector: BurstDetector, clock: FakeClock) -> None:
        """An attack of five minutes is five findings, not one and not hundreds."""
        told = 0
        for _ in range(300):
            told += detector.observe("a", 401) is not None
            clock.advance(1)
        assert told == 5

    def test_slow_failures_are_no_burst(self, detector: BurstDetector, clock: FakeClock) -> None:
        """A forgotten key in a job that runs every 15 s is no attack."""
        for _ in range(50):
            assert detector.observe("a", 401) is None
            clock.advance(15)

    def test_clients_and_statuses_are_told_apart(self, detector: BurstDetector) -> None:
        """Failures of one client do not count for another, nor one status for another."""
        for _ in range(4):
            assert detector.observe("a", 401) is None
            assert detector.observe("b", 401) is None
            assert detector.observe("a", 404) is None

    def test_success_counts_nothing(self, detector: BurstDetector) -> None:
        """Other statuses leave no trace, so they cannot push a failing client out."""
        for _ in range(4):
            detector.observe("a", 401)
        for index in range(100):
            assert detector.observe(f"other-{index}", 200) is None
        assert detector.observe("a", 401)

    def test_memory_is_bounded(self, detector: BurstDetector) -> None:
        """The client that was silent longest is forgotten first."""
        for _ in range(4):
            detector.observe("a", 401)
        for other in "bc":
            detector.observe(other, 401)
        detector.observe("a", 404)  # a fourth pair: ("a", 401) goes
        assert detector.observe("a", 401) is None
