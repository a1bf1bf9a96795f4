"""What looks hostile in a request line.

Bodies are never looked at, so no prompt is ever a security event. Detection is an observation for the audit log and,
with SECURITY_MODE=block, a refusal; the service does not rest on it: no caller's input reaches a file name, a shell, or
SQL text. So where an attack and a question *about* an attack look alike, the question wins: a sentence is nobody's
payload (`_is_sentence`, `_is_about_code`), and one sign of SQL is not enough (`_sql_signs`).

Pure. Detection looks at `MAX_INSPECTED` characters at most of a path, query or user agent, decoded `MAX_DECODES` times
at most, by patterns whose repeats are bounded: its time is linear in that. Of a longer one it looks at both ends, and
says that it is long. Clients that keep failing are noticed elsewhere (`audit/bursts.py`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from urllib.parse import unquote

from mtllm.domain.findings import Finding, Severity
from mtllm.security.redaction import redact

PATH_TRAVERSAL: Final = "path_traversal"
SQL_INJECTION: Final = "sql_injection"
SCRIPT_INJECTION: Final = "script_injection"
COMMAND_INJECTION: Final = "command_injection"
HEADER_INJECTION: Final = "header_injection"
ENCODED_ATTACK: Final = "encoded_attack"
PROBING_PATH: Final = "probing_path"
OVERSIZED_TARGET: Final = "oversized_target"
SCANNER_USER_AGENT: Final = "scanner_user_agent"

HOSTILE_KINDS: Final = frozenset(
    {PATH_TRAVERSAL, SQL_INJECTION, SCRIPT_INJECTION, COMMAND_INJECTION, HEADER_INJECTION, ENCODED_ATTACK, PROBING_PATH}
)
"""What SECURITY_MODE=block refuses: attacks in paths and queries. User agents and length are only logged."""

MAX_INSPECTED: Final = 2048
MAX_DECODES: Final = 3
MAX_EVIDENCE: Final = 120


# What a request line says ---------------------------------------------------------------------------------------------


def inspect(path: str, query: str, user_agent: str) -> tuple[Finding, ...]:
    """What is suspicious in a path and query (as sent, or percent-decoded once) and a user agent; () as a rule.

    Each kind is found at most once in each of the three.
    """
    return _path_findings(path) + _query_findings(query) + _agent_findings(user_agent)


def hostile(findings: Iterable[Finding]) -> bool:
    """True if SECURITY_MODE=block refuses a request with these findings."""
    return any(finding.kind in HOSTILE_KINDS for finding in findings)


def _remembered(
    look: Callable[[str], tuple[Finding, ...]],
) -> Callable[[str], tuple[Finding, ...]]:
    """Remember the answers for short texts: most requests repeat a few paths and user agents."""
    known = lru_cache(maxsize=1024)(look)
    return lambda text: known(text) if len(text) <= 256 else look(text)


@_remembered
def _path_findings(path: str) -> tuple[Finding, ...]:
    return _target_findings(path, [_utf8(path)], _PATH_RULES, encoded_from=1)


def _utf8(path: str) -> str:
    """A path's real text, as WSGI hands over bytes dressed as Latin-1 (PEP 3333); one that is none already stays."""
    try:
        return path if path.isascii() else path.encode("latin-1").decode("utf-8", "replace")
    except UnicodeEncodeError:
        return path


def _query_findings(query: str) -> tuple[Finding, ...]:
    """Not remembered, since a query may hold a secret; a query without any special character is let go at once."""
    if not query or _QUIET_QUERY.fullmatch(query):
        return ()
    values = [_value(pair) for pair in _both_ends(query).replace("+", " ").split("&")]
    return _target_findings(query, values, _QUERY_RULES, encoded_from=2)


def _value(pair: str) -> str:
    """The value of `name=value`; the whole of a pair whose name is odd, since the name may be the attack."""
    name, equals, value = pair.partition("=")
    return value if equals and _PLAIN_NAME.fullmatch(name) else pair


def _target_findings(
    target: str, texts: Iterable[str], rules: tuple[_Rule, ...], *, encoded_from: int
) -> tuple[Finding, ...]:
    """The findings of all decoded forms of `texts`; one that needed `encoded_from` decodings is an evasion, too."""
    found: dict[str, Finding] = {}
    if len(target) > MAX_INSPECTED:
        found[OVERSIZED_TARGET] = Finding(OVERSIZED_TARGET, "low", f"{len(target)} characters")
    for text in texts:
        views = list(_decoded_views(_both_ends(text)))
        meant = _canonical(views[-1])
        for depth, view in enumerate(views):
            hits = [hit for hit in _matches(view, rules, meant) if hit.kind not in found]
            found |= {hit.kind: hit for hit in hits}
            if hits and depth >= encoded_from:
                found.setdefault(ENCODED_ATTACK, Finding(ENCODED_ATTACK, "high", hits[0].evidence))
    return tuple(found.values())


def _both_ends(text: str) -> str:
    """What of a text is looked at: padding moves an attack to the end, so both ends count."""
    half = MAX_INSPECTED // 2
    return text if len(text) <= MAX_INSPECTED else text[:half] + text[-half:]


def _decoded_views(text: str) -> Iterator[str]:
    """The text as it is and after each percent-decoding that still changes it."""
    yield text
    for _ in range(MAX_DECODES):
        if "%" not in text:
            return
        decoded = _decode(text)
        if decoded == text:
            return
        text = decoded
        yield text


def _decode(text: str) -> str:
    """Percent-decoding as lenient as the most lenient server: overlong UTF-8 (`%c0%ae`) and `%u002e`, too."""
    text = _OVERLONG.sub(lambda match: _OVERLONG_MEANING[match[0].lower()], text)
    text = _UNICODE_ESCAPE.sub(lambda match: chr(int(match[1], 16)), text)
    return unquote(text, errors="replace")


def _matches(text: str, rules: tuple[_Rule, ...], meant: str) -> Iterator[Finding]:
    """The findings in one decoded form; `meant` is the last form, by which a sentence is told from a payload."""
    if _RAW_CONTROL.search(text):
        header = _HEADER_SPLIT.search(text)
        if header:
            yield Finding(HEADER_INJECTION, "high", _evidence(text, header))
        elif "\0" in text:
            yield Finding(ENCODED_ATTACK, "medium", _evidence(text))
    plain = _canonical(text)
    for rule in rules:
        if (match := rule.find(plain)) and not (rule.spares and rule.spares(meant)):
            yield Finding(rule.kind, rule.severity, _evidence(plain, match))


def _canonical(text: str) -> str:
    """One spelling for what parsers read alike: compatibility characters, SQL comments as blanks, single blanks."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)[:MAX_INSPECTED]
    if "/*" in text:
        text = _SQL_COMMENT.sub(" ", text)
    return " ".join(text.split())


def _is_sentence(text: str) -> bool:
    """Three plain words that belong to no query language make a sentence, as does a word that asks, in front.

    So does a whole statement: an injection is the torn half of one.
    """
    return _plain_words(text, _CODE_WORDS) >= 3 or _ASKS.match(text) is not None


def _is_about_code(text: str) -> bool:
    """Two plain words outside of any tag make a question about markup, files or commands."""
    return _plain_words(_TAG.sub(" ", text), _COMMAND_WORDS) >= 2


def _plain_words(text: str, ignored: frozenset[str]) -> int:
    """How many words stand free in a text; each character of a script written without blanks counts for one."""
    words = (word.lower() for word in _WORD.findall(text))
    return sum(1 for word in words if word not in ignored) + len(_UNSPACED.findall(text))


_ASKS: Final = re.compile(
    r"(?:what|how|why|who|which|can|could|does|explain|describe|tell|write|please|translate|summari[sz]e|help"
    r"|select|insert into|update|delete from|create table) ",
    re.IGNORECASE,
)
_TAG: Final = re.compile(r"<[^<>]{0,400}>?")
_WORD: Final = re.compile(r"(?<![^\s¿¡(])[^\W\d_]{2,}(?=[?!.,:;)]{0,3}(?:\s|$))")
# Thai, Lao, Japanese and Chinese.
_UNSPACED: Final = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]")
_SPOKEN_BY_MACHINES: Final = """
select from where union all distinct and or not xor null order by group having insert into values update set delete
drop table database truncate alter create exec execute declare waitfor delay sleep like rlike then else end case when
if as is in on between exists join left right inner outer limit offset asc desc cast convert char varchar int begin
return procedure analyse shutdown
user users username usernames password passwords passwd name id email admin administrator login accounts account
members customers version information schema tables columns
"""
_CODE_WORDS: Final = frozenset(_SPOKEN_BY_MACHINES.split())
_COMMAND_WORDS: Final = frozenset({"cat", "ls", "id", "dir", "echo", "whoami", "ping", "curl", "wget", "uname", "var"})


# Rules ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Rule:
    """One kind of attack, how it is seen in a decoded canonical text, and which texts are spared after all."""

    kind: str
    severity: Severity
    find: Callable[[str], re.Match[str] | None]
    spares: Callable[[str], bool] | None = None


def _pattern(*alternatives: str) -> Callable[[str], re.Match[str] | None]:
    return re.compile("|".join(alternatives), re.IGNORECASE).search


_QUIET_QUERY: Final = re.compile(r"[\w=&.,:~-]*")
_PLAIN_NAME: Final = re.compile(r"[\w.~-]{1,64}")
_RAW_CONTROL: Final = re.compile(r"[\0\r\n]")
_HEADER_SPLIT: Final = re.compile(r"[\r\n] ?(?:[A-Za-z][A-Za-z0-9-]{1,40}: ?\S|HTTP/\d)")
_SQL_COMMENT: Final = re.compile(r"/\*!\d{0,6}|/\*(?!!)[^*]{0,80}\*/|\*/")
_UNICODE_ESCAPE: Final = re.compile(r"%u([0-9a-f]{4})", re.IGNORECASE)
_OVERLONG_MEANING: Final = {
    "%c0%ae": ".", "%e0%80%ae": ".", "%c0%af": "/", "%e0%80%af": "/", "%c1%9c": "\\", "%c0%bc": "<", "%c0%a7": "'",
}  # fmt: skip
_OVERLONG: Final = re.compile("|".join(_OVERLONG_MEANING), re.IGNORECASE)

# U+FFFD stands for what an overlong slash or dot becomes when the server before us has decoded it.
_TARGET_FILES: Final = (
    r"(?:etc[/\\]+(?:passwd|shadow|sudoers|group|hosts|issue|ssh)|proc[/\\]+(?:self|\d|version)|boot\.ini|win\.ini"
    r"|windows[/\\]+(?:win\.ini|system32)|winnt[/\\]|web-inf[/\\]|\.ssh[/\\]|\.env\b|\.git[/\\]|\.aws[/\\])"
)
_traversal_in_path = _pattern(
    r"(?:^|[/\\])\.\.;?(?:[/\\\ufffd]|$)",
    r"\.{4}[/\\]{2}|(?:\.{4}[/\\]){2}|(?:\ufffd{4}[/\\]){2}",
    r"[/\\](?:etc[/\\]+(?:passwd|shadow)\b|proc[/\\]+self[/\\]|boot\.ini$|win\.ini$|web-inf[/\\])",
)
_traversal_in_value = _pattern(
    r"(?:^|[/\\=:\"'])(?:\.{2,6};?[/\\\ufffd]{1,4}){2}",
    r"\.\.[/\\]{1,4}" + _TARGET_FILES,
    r"^(?:file:[/\\]{0,4}|[a-z]:|[/\\])[/\\]{0,3}(?:etc[/\\]+(?:passwd|shadow|sudoers|ssh)|proc[/\\]+self"
    r"|boot\.ini|windows[/\\]+(?:win\.ini|system32)|winnt[/\\]|web-inf[/\\])",
    r"^file:///",
)

_script = _pattern(
    r"<[ /]{0,2}(?:script|iframe|object|embed|applet|frameset|xss)\b",
    r"<[a-z!/][^<>]{0,300}[ /\"'+]on[a-z]{3,24} ?=",
    r"<[a-z][^<>]{0,300}= ?[\"']?(?:java ?script|vb ?script|data) ?:",
    r"<(?:meta|link|base)\b[^<>]{0,200}(?:http-equiv|href) ?=",
    r"[\"'`][ />]{0,4}(?:[a-z]{1,20} ){0,2}"
    r"on(?:error|load|click|focus|blur|toggle|begin|start|mouse\w{2,8}|key\w{2,5}|pointer\w{2,8}) ?=",
    r"(?:^|[\"'=(])(?:j ?a ?v ?a ?s ?c ?r ?i ?p ?t|vb ?script) ?:(?! ?(?:void ?\(? ?0|;|$))",
    r"^data ?: ?text/html",
    r"[\"'`;)}][ ;)}/*+-]{0,6}(?:alert|confirm|prompt|eval|fetch)(?: ?\(|`|\.(?:call|apply))",
    r"[\"'`;)}][ ;)}/*+-]{0,6}(?:document|window|location)\.[a-z]{1,20} ?[=(.]",
)

_SHELL: Final = r"(?:[;|`]|&&|\$\()\s?"
_command = _pattern(
    _SHELL
    + r"(?:/(?:usr/)?s?bin/)?(?:cat|ls|more|head|tail|rm|nc|ncat|ping|curl|wget|bash|sh|python[23]?|perl|php|type|dir)"
    r"(?: |\$\{?ifs\}?)+(?:-|/|\$|~|\.|https?:|[a-z]:|\d{1,3}\.)",
    _SHELL + r"(?:/(?:usr/)?bin/)?(?:whoami|id|uname|hostname|ifconfig|ipconfig|printenv|env|pwd|netstat|ls|sleep \d+)"
    r" ?(?:$|[;|`)&#]|-)",
    r"\$\{(?:jndi|env|sys|lower|upper|::-|\$\{)",
    r"\(\) ?\{ ?:; ?\}",
    r"(?:\{\{|[$#]\{|<%=) ?['\"(]?\d+['\")]? ?\* ?['\"(]?\d+",
    r"\{\{ ?(?:config|self|request|settings|cycler|lipsum)\b",
    r"__(?:class|globals|builtins|import|subclasses)__|constructor\.constructor|t\(java\.lang",
    r"<\?(?:php|=)|^(?:php|phar|expect|zip)://|<!(?:doctype|entity)[^<>]{0,100}\bsystem\b",
)

_SQL_SIGNS: Final = tuple(
    re.compile(sign, re.IGNORECASE)
    for sign in (
        r"['\"`][ )]{0,6}(?:(?:or|and|xor|div|mod|having|like|rlike|union|order|group|procedure)\b"
        r"|\|\||&&|[;=<>+]|--|#|/\*)",
        r"(?:\b(?:or|and|xor|having|where|not|when|if)\b|\|\||&&|\() ?[ (!~-]{0,6}(?:\d{1,12}|(['\"])[^'\"]{0,20}\1) ?"
        r"(?:=|<|>|!=|\blike\b|\bin\b|\bbetween\b) ?[('\"]{0,4}[\w]{0,20}",
        r"\b(?:or|and|xor)\b ?[ (!]{0,4}(?:true|false|not|exists|null|ascii|substr\w*|mid|length|user|version)\b",
        r"^-?\d{1,12}[ '\")]{1,6}(?:(?:or|and|xor|union|order by|group by|having|procedure|rlike|div)\b|\|\||&&)",
        r"\bunion(?: all| distinct)?[ (]{1,6}select\b(?! ?[\"'])",  # a quote here ends a quoted phrase
        r"\bselect\b.{1,100}\bfrom\b.{1,60}(?:--|#|['\"]$|\)$)",
        r"(?:--|#|;|/\*|;%00)[ +-]{0,4}\w{0,6}$",
        r"\b(?:order|group) by \d{1,4}\b|\bhaving \d{1,4} ?=",
        r"\b(?:sleep|benchmark|pg_sleep|randomblob|randomuuid) ?\(|\bwaitfor delay\b|\bdbms_\w{2,20}\.",
        r"\b(?:extractvalue|updatexml|load_file|xp_\w{3,20}|utl_\w{2,10}|group_concat|concat|concat_ws|char|chr"
        r"|unhex) ?\(|\bxp_cmdshell\b|\binto (?:out|dump)file\b",
        r"\b(?:information_schema|sqlite_(?:master|schema)|pg_catalog|mysql\.user|sysobjects|all_tables)\b|@@\w{3}|\b0x[0-9a-f]{6,}",
        r"\( ?select\b|\bcase when\b",
        r"(?:null|\d{1,3}) ?,(?: ?(?:null|\d{1,3}|@@\w{1,20}|\w{1,20}\(\)) ?,?){2}",
    )
)
_stacked_sql = _pattern(
    r"(?:^|['\"\d)]) ?; ?(?:drop|insert|update|delete|select|exec|declare|shutdown|waitfor|alter|create|truncate)\b",
    r"; ?(?:(?:drop|truncate|alter|create) (?:table|database|user|schema|view|index)|insert into|delete from) \w",
    r"\[\$(?:ne|gt|gte|lt|lte|in|nin|regex|where|exists|or)\]|\{ ?['\"]?\$(?:ne|gt|lt|where|regex|or)['\"]? ?:",
)


def _sql_signs(text: str) -> re.Match[str] | None:
    """One sign is a word or an apostrophe (`O'Reilly and Sons`), two are an attempt, as is a stacked statement."""
    if stacked := _stacked_sql(text):
        return stacked
    first = None
    for sign in _SQL_SIGNS:
        if match := sign.search(text):
            if first:
                return first
            first = match
    return None


_probe = _pattern(
    r"(?:^|/)\.(?!well-known(?:/|$))[^./]",
    r"\.(?:php\d?|phtml|aspx?|ashx|asmx|axd|jspx?|jsf|cfm|cgi|pl|do|action|bak|backup|old|orig|save|swp|sql|sqlite3?|mdb|env"
    r"|ini|conf|cfg|log|pem|p12|key|pfx|ppk|tar|tgz|gz|bz2|zip|rar|7z|exe|dll|sh|bat|ps1|rsp|config)~?(?:[/;?]|$)|~$",
    r"(?:^|/)(?:wp-[a-z]|wordpress|wp|xmlrpc|php-?my-?admin[\w.-]{0,20}|my-?admin|mysql-?admin|pma|adminer|phpinfo|php-?pg-?admin|cgi-bin"
    r"|administrator|joomla|drupal|magento|typo3|laravel|vendor|node_modules|telescope|_ignition|_profiler|_debugbar"
    r"|actuator|jolokia|jmx-console|web-console|invoker|manager/(?:html|text|status)|host-manager|solr|jenkins|hudson|nacos"
    r"|druid|geoserver|struts2?|server-(?:status|info)|nginx_status|debug/(?:pprof|vars|default)|owa|ecp|autodiscover"
    r"|hnap1|boaform|goform|gponform|evox|sdk|nmaplowercheck\w*|dana-na|global-protect|\+cscoe\+|remote/(?:fgt_lang|login)"
    r"|v2/_catalog|_cat|_all_dbs|_cluster|id_[rd]sa|backups?|dumps?|credentials|secrets|config\.(?:json|ya?ml|xml|js)"
    r"|docker-compose\.ya?ml|(?:package|composer|appsettings|secrets|credentials)\.json|api/jsonws|reportserver|shell"
    r"|web-inf|meta-inf|phpunit|eval-stdin)(?:[/.?;]|$|(?<=wp-[a-z]))",
)

_SCANNER: Final = re.compile(
    r"sqlmap|nikto|nmap|masscan|zgrab|dirbuster|dirsearch|\bdirb\b|gobuster|feroxbuster|\bffuf\b|fuzz faster|"
    r"wfuzz|wpscan|joomscan|droopescan|cmsmap|nuclei|projectdiscovery|acunetix|netsparker|invicti|nessus|openvas|"
    r"greenbone|qualys|burp ?(?:suite|collaborator)?\b|\bzap\b|zaproxy|w3af|arachni|skipfish|whatweb|wapiti|"
    r"webinspect|appscan|havij|commix|xsser|xsstrike|sqlninja|bsqlbf|fimap|metasploit|thc-hydra|"
    r"mozilla/[45]\.0 \(hydra\)|jorgee|zmeu|morfeus|muieblackcat|l9explore|l9tcpid|leakix|jaeles|"
    r"vulnerability.?scan|network.?scan|\bshodan\b|censysinspect|expanse, a palo alto|internetmeasurement|"
    r"gobuster|golismero|paros/|\bvega/1|hello,? world$|\bscanner\b",
    re.IGNORECASE,
)
_AGENT_PAYLOAD: Final = re.compile(
    r"\(\) ?\{|\$\{|<script|<\?php|(?:\.\./){2}|['\"][ )]{0,3}(?:or|and) .{0,10}=|union[ +(].{0,10}select"
    r"|\b(?:sleep|benchmark|pg_sleep) ?\(\d|;\s?(?:wget|curl|bash|sh) ",
    re.IGNORECASE,
)

_PATH_RULES: Final = (
    _Rule(PATH_TRAVERSAL, "high", _traversal_in_path),
    _Rule(PROBING_PATH, "medium", _probe),
    _Rule(SCRIPT_INJECTION, "high", _script, _is_about_code),
    _Rule(COMMAND_INJECTION, "high", _command, _is_about_code),
    _Rule(SQL_INJECTION, "high", _sql_signs, _is_sentence),
)
_QUERY_RULES: Final = (
    _Rule(PATH_TRAVERSAL, "high", _traversal_in_value, _is_about_code),
    _Rule(SCRIPT_INJECTION, "high", _script, _is_about_code),
    _Rule(COMMAND_INJECTION, "high", _command, _is_about_code),
    _Rule(SQL_INJECTION, "high", _sql_signs, _is_sentence),
)


@_remembered
def _agent_findings(user_agent: str) -> tuple[Finding, ...]:
    """Scanners by name, payloads by form. Plain clients (curl, python-requests) are nobody's concern."""
    text = _both_ends(user_agent)
    if payload := _AGENT_PAYLOAD.search(text):
        return (Finding(SCANNER_USER_AGENT, "high", _evidence(text, payload)),)
    if name := _SCANNER.search(text):
        return (Finding(SCANNER_USER_AGENT, "medium", _evidence(text, name)),)
    return ()


# What may be shown ----------------------------------------------------------------------------------------------------


def _evidence(text: str, match: re.Match[str] | None = None) -> str:
    """The part of a text around a match: redacted before it is cut, as half a key is not recognised; then printable."""
    shown = redact(text)
    at = shown.find(match[0]) if match else 0
    start = max(0, at - MAX_EVIDENCE // 4)
    return "".join(char if char.isprintable() else "?" for char in shown[start : start + MAX_EVIDENCE])
