"""What security.py finds in a request line."""

from __future__ import annotations

import time

import pytest

from mtllm.security.detection import MAX_EVIDENCE, MAX_INSPECTED, hostile, inspect

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

    def test_evidence_is_bounded_and_printable(self) -> None:
        """Control characters and length never get from a request into the log."""
        query = "q=%1b[31m%00%0a" + "z" * 500 + "%3Cscript%3Ealert(1)%3C/script%3E" + "y" * 500
        findings = inspect("/\x1b\0", query, "sqlmap\r\n" + "x" * 5000)
        assert len(findings) >= 3
        for finding in findings:
            assert finding.evidence.isprintable()
            assert 0 < len(finding.evidence) <= MAX_EVIDENCE

    def test_evidence_shows_the_attack_and_no_secret(self) -> None:
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
    """Adversarial repetition does not hang detection; the bound only guards against hanging."""
    text = piece * (MEGABYTE // len(piece))
    started = time.perf_counter()
    inspect("/" + text, "q=" + text, text)
    assert time.perf_counter() - started < 10


def test_the_part_looked_at_is_bounded() -> None:
    """Each part's rules see `MAX_INSPECTED` characters at most, however long the part is."""
    hidden = "x" * MAX_INSPECTED + "<script>alert(1)</script>" + "x" * MAX_INSPECTED
    assert kinds("/" + hidden, "q=" + hidden, hidden) == {"oversized_target"}
