"""The proxy files of `deploy/`, each run by the real program in front of the real service, over TLS."""

from __future__ import annotations

import json
import os
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

import pytest

from mtllm.project import PROJECT
from tests.support.scripted_gemini import IDLE, ScriptedGemini, stream
from tests.support.serving import APP_PY, PATIENCE, WAITRESS_SERVE, Process, eventually, free_port, listens

DEPLOY = PROJECT / "deploy"
TEXT = "/api/v1/generate/text"
HOST = "llm.example"
MODULES = ("mpm_event", "authz_core", "ssl", "socache_shmcb", "proxy", "proxy_http", "headers", "alias")
APACHE_MODULES = Path("/usr/lib/apache2/modules")


@dataclass(frozen=True)
class Place:
    """Where one proxy runs: its folder, its two ports, and the service's."""

    folder: Path
    https: int
    http: int
    service: int

    @property
    def certificate(self) -> Path:
        return self.folder.parent / "certificate.pem"

    @property
    def key(self) -> Path:
        return self.folder.parent / "certificate.key"

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        return path

    def adapted(self, name: str, **changes: str) -> str:
        """The file of `deploy/` with the ports and paths of this test; each change must find its place."""
        text = (DEPLOY / name).read_text()
        for old, new in {"127.0.0.1:5000": f"127.0.0.1:{self.service}", **changes}.items():
            assert old in text, f"{name} no longer has {old!r}"
            text = text.replace(old, new)
        return text

    def serves(self, https: str, http: str) -> dict[str, str]:
        """The changes that put the two listeners on this test's ports."""
        return {https: https.replace("443", str(self.https)), http: http.replace("80", str(self.http))}


def nginx(place: Place) -> Sequence[str]:
    """The command of an nginx whose site is ours."""
    site = place.adapted(
        "nginx.conf",
        **place.serves("listen 443", "listen 80"),
        **{"/etc/ssl/llm.example.pem": str(place.certificate), "/etc/ssl/llm.example.key": str(place.key)},
    )
    return nginx_with(place, site)


def nginx_with(place: Place, site: str) -> Sequence[str]:
    """The command of an nginx with one site, whose temporary files lie in the folder."""
    temporary = "".join(
        f"{kind}_temp_path {place.folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    main = place.write(
        "main.conf",
        f"{'user root;' if os.geteuid() == 0 else ''} daemon off; pid {place.folder}/pid; error_log stderr;\n"
        f"events {{}}\nhttp {{ access_log off;\n{temporary}{site}}}\n",
    )
    return ["nginx", "-e", "stderr", "-p", str(place.folder), "-c", str(main)]


def haproxy(place: Place) -> Sequence[str]:
    """The command of a HAProxy whose configuration is ours."""
    both = place.write("both.pem", place.certificate.read_text() + place.key.read_text())
    text = place.adapted(
        "haproxy.cfg",
        **place.serves("bind :443", "bind :80"),
        **{"/etc/haproxy/llm.example.pem": str(both)},
    )
    return ["haproxy", "-f", str(place.write("haproxy.cfg", text))]


def caddy(place: Place) -> Sequence[str]:
    """The command of a Caddy whose site is ours, with a certificate that nobody has to be asked for."""
    site = f"https://{HOST}:{place.https} {{\n\ttls {place.certificate} {place.key}"
    text = place.adapted("Caddyfile", **{f"\n{HOST} {{": "\n" + site})
    file = place.write("Caddyfile", f"{{\n\tadmin off\n\tauto_https off\n}}\n{text}")
    return ["caddy", "run", "--adapter", "caddyfile", "--config", str(file)]


def apache(place: Place) -> Sequence[str]:
    """The command of an Apache whose site is ours."""
    site = place.adapted(
        "apache.conf",
        **place.serves("*:443", "*:80"),
        **{"/etc/ssl/llm.example.pem": str(place.certificate), "/etc/ssl/llm.example.key": str(place.key)},
    )
    loads = "".join(
        f"LoadModule {name}_module {APACHE_MODULES}/mod_{name}.so\n"
        for name in MODULES
        if (APACHE_MODULES / f"mod_{name}.so").exists()
    )
    user = "User www-data\nGroup www-data\n" if os.geteuid() == 0 else ""
    main = place.write(
        "apache2.conf",
        f"ServerRoot {place.folder}\nDefaultRuntimeDir {place.folder}\nPidFile {place.folder}/pid\n"
        f"ErrorLog /dev/stderr\n"
        f"ServerName {HOST}\n{loads}{user}Listen {place.https}\nListen {place.http}\n{site}",
    )
    return ["apache2", "-DFOREGROUND", "-f", str(main)]


PROXIES = {"nginx": nginx, "haproxy": haproxy, "caddy": caddy, "apache": apache}
PROGRAMS = {"apache": "apache2"}
ALL = pytest.mark.parametrize("name", list(PROXIES))


@contextmanager
def running(command: Sequence[str], place: Place) -> Iterator[None]:
    """The program, listening; skips where it is not installed."""
    program = shutil.which(command[0], path=os.environ["PATH"] + ":/usr/sbin")
    if program is None:
        pytest.skip(f"{command[0]} is not installed (Debian: apt-get install {command[0]})")
    home = {"HOME": str(place.folder), "XDG_DATA_HOME": str(place.folder), "XDG_CONFIG_HOME": str(place.folder)}
    told = place.folder / "told.log"
    with told.open("wb") as log:
        process = subprocess.Popen([program, *command[1:]], env=os.environ | home, stdout=log, stderr=log)
        try:
            assert eventually(lambda: process.poll() is not None or listens(place.https)), told.read_text()
            assert process.poll() is None, told.read_text()
            yield
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE / 4)
            except subprocess.TimeoutExpired:  # it waits for its connections, which a failed test has left open
                process.kill()
                process.wait(PATIENCE)


class Caller:
    """One who asks a proxy over TLS, from an address of the loopback; on one connection while the block runs."""

    def __init__(self, place: Place, source: str = "127.0.0.1") -> None:
        trust = ssl.create_default_context(cafile=place.certificate)
        self._connection = _NamedHost("127.0.0.1", place.https, context=trust, source_address=(source, 0))
        self._host = f"{HOST}:{place.https}"

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Go away, whatever may still come."""
        self._connection.close()

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> HTTPResponse:
        """The response, once its head has come. A proxy may refuse a long body before it has read all of it."""
        given = {"Host": self._host, "Content-Type": "application/json", "Accept-Encoding": "identity"}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with suppress(OSError):
            self._connection.request(method, path, body, given | named)
        return self._connection.getresponse()

    def post(self, prompt: str, **headers: str) -> HTTPResponse:
        """A prompt's response."""
        return self.ask("POST", TEXT, json.dumps({"prompt": prompt}).encode(), **headers)

    def stream(self, prompt: str) -> HTTPResponse:
        """A prompt's response, to be read with `next_delta`."""
        return self.ask("POST", TEXT, json.dumps({"prompt": prompt, "stream": True}).encode())


class _NamedHost(HTTPSConnection):
    """TLS to an address, with the host's name in the handshake."""

    def connect(self) -> None:
        HTTPConnection.connect(self)
        self.sock: Any = self._context.wrap_socket(self.sock, server_hostname=HOST)  # type: ignore[attr-defined]


def next_delta(response: HTTPResponse) -> str:
    """The next delta's text; waits for it."""
    for line in iter(response.readline, b""):
        if line.startswith(b"data: "):
            return str(json.loads(line.removeprefix(b"data: "))["delta"])
    raise EOFError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate for HOST; whoever a proxy runs as may look into it."""
    made = tmp_path_factory.mktemp("proxies")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}"),
            *("-keyout", made / "certificate.key", "-out", made / "certificate.pem"),
        ],
        check=True,
        capture_output=True,
    )
    return made


@pytest.fixture(scope="module")
def upstream() -> Iterator[ScriptedGemini]:
    """The Gemini behind the service behind the proxies."""
    with ScriptedGemini() as scripted:
        yield scripted


@pytest.fixture(scope="module")
def service(folder: Path, upstream: ScriptedGemini) -> Iterator[Process]:
    """The service as an operator starts it behind a proxy."""
    with Process(APP_PY, _environment(folder, upstream), threads=16) as started:
        yield started


def _environment(folder: Path, upstream: ScriptedGemini) -> dict[str, str]:
    places = {name: str(folder / name.lower()) for name in ("LOG_DIR", "CACHE_DIR", "DATA_DIR")}
    return places | {
        "GOOGLE_API_KEY": "AIza-test-key",
        "GEMINI_API_ENDPOINT": upstream.url,
        "RATE_LIMITS": "",
        "TRUSTED_PROXIES": "1",
    }


Front = Callable[[str], Place]


@pytest.fixture(scope="module")
def front(folder: Path, service: Process) -> Iterator[Front]:
    """Starts a proxy by name in front of the service; once."""
    with ExitStack() as stack:
        started: dict[str, Place] = {}

        def start(name: str) -> Place:
            if name not in started:
                place = place_for(folder, name, service.port)
                stack.enter_context(running(PROXIES[name](place), place))
                started[name] = place
            return started[name]

        yield start


def place_for(folder: Path, name: str, service: int) -> Place:
    """An empty folder and free ports for one proxy."""
    place = Place(folder / f"{name}-{uuid4().hex[:6]}", free_port(), free_port(), service)
    place.folder.mkdir()
    return place


def a_prompt() -> str:
    """One that no test has asked before."""
    return f"prompt {uuid4()}"


def logged(folder: Path, request_id: str) -> dict[str, Any] | None:
    """The request's line in api_requests.log, if it is there by now."""
    log = folder / "log_dir" / "api_requests.log"
    lines = log.read_text().splitlines() if log.exists() else []
    return next((line for line in map(json.loads, lines) if line["request_id"] == request_id), None)


@ALL
def test_a_stream_arrives_delta_by_delta(front: Front, upstream: ScriptedGemini, name: str) -> None:
    """Each delta is there before Gemini says the next, within a tenth of a second or so."""
    count = 9
    turns = [threading.Semaphore(0) for _ in range(count)]
    upstream.answers(stream("0 ", *[beat for number, turn in enumerate(turns, 1) for beat in (turn, f"{number} ")]))
    late = []
    with Caller(front(name)) as caller:
        response = caller.stream(a_prompt())
        assert response.status == 200
        assert next_delta(response) == "0 "
        for number, turn in enumerate(turns, 1):
            said = time.monotonic()
            turn.release()
            assert next_delta(response) == f"{number} "
            late.append(time.monotonic() - said)
    assert median(late) < 0.15


@pytest.mark.parametrize("name", ["nginx", "haproxy", "caddy"])
def test_a_client_that_leaves_in_a_silence_is_noticed(
    front: Front, upstream: ScriptedGemini, folder: Path, name: str
) -> None:
    """Its call ends long before the keep-alive after 10 s would have told."""
    upstream.answers(stream("begun ", IDLE))
    with Caller(front(name)) as caller:
        response = caller.stream(a_prompt())
        request_id = response.headers["X-Request-ID"]
        assert next_delta(response) == "begun "
    assert eventually(lambda: logged(folder, request_id), seconds=8)
    assert (logged(folder, request_id) or {})["code"] == "abandoned"


def test_apache_tells_of_a_client_that_leaves_at_the_next_deltas(
    front: Front, upstream: ScriptedGemini, folder: Path
) -> None:
    """It notices at a byte that it cannot deliver, and so does the service then."""
    upstream.answers(stream(*[beat for _ in range(200) for beat in ("and then ", 0.1)]))
    with Caller(front("apache")) as caller:
        response = caller.stream(a_prompt())
        request_id = response.headers["X-Request-ID"]
        assert next_delta(response) == "and then "
    assert eventually(lambda: logged(folder, request_id), seconds=15)
    assert (logged(folder, request_id) or {})["code"] == "abandoned"


@ALL
def test_the_service_sees_who_calls(front: Front, folder: Path, name: str) -> None:
    """The caller's own address, whatever the caller wrote into X-Forwarded-For."""
    with Caller(front(name), source="127.0.0.2") as caller:
        response = caller.post(a_prompt(), X_Forwarded_For="203.0.113.9")
        assert response.status == 200
    request_id = response.headers["X-Request-ID"]
    assert eventually(lambda: logged(folder, request_id))
    assert (logged(folder, request_id) or {})["client"] == "127.0.0.2"


@ALL
def test_a_body_that_is_too_long_gets_the_services_answer(front: Front, name: str) -> None:
    """Ten times in a row, as JSON with its code."""
    for _ in range(10):
        with Caller(front(name)) as caller:
            response = caller.ask("POST", TEXT, b"x" * 1_200_000)
            assert (response.status, json.loads(response.read())["code"]) == (413, "payload_too_large")


@ALL
def test_a_body_far_too_long_is_refused_as_such(front: Front, name: str) -> None:
    """413, though in the proxy's words; never a 502 that looks like an outage."""
    for _ in range(5):
        with Caller(front(name)) as caller:
            assert caller.ask("POST", TEXT, b"x" * 5_000_000).status == 413


@pytest.mark.parametrize("name", ["nginx", "haproxy", "apache"])
def test_plain_http_is_sent_to_https(front: Front, name: str) -> None:
    """With its method and path. (Caddy does that by itself, where it has a certificate of its own.)"""
    connection = HTTPConnection("127.0.0.1", front(name).http, timeout=PATIENCE)
    connection.request("POST", TEXT, b"{}", {"Host": HOST})
    response = connection.getresponse()
    connection.close()
    assert (response.status, response.headers["Location"]) == (308, f"https://{HOST}{TEXT}")


@ALL
def test_the_services_redirects_stay_with_the_proxy(front: Front, name: str) -> None:
    """/swagger leads to a place that the caller can reach: no other scheme, host or port."""
    place = front(name)
    with Caller(place) as caller:
        response = caller.ask("GET", "/swagger")
        location = response.headers["Location"] or ""
    assert (response.status, location) == (308, "/swagger/")


def test_connections_that_the_service_closes_fail_no_request(folder: Path, upstream: ScriptedGemini) -> None:
    """With requests around the moment when the service lets a silent connection go, behind all four."""
    apart = folder / "closing"
    flags = ("--channel-timeout=3", "--cleanup-interval=1", "--no-clear-untrusted-proxy-headers")
    with ExitStack() as stack:
        closing = stack.enter_context(Process(WAITRESS_SERVE, _environment(apart, upstream), threads=8, flags=flags))
        places = [place_for(folder, name, closing.port) for name in PROXIES]
        for name, place in zip(PROXIES, places, strict=True):
            stack.enter_context(running(PROXIES[name](place), place))
        callers = stack.enter_context(ThreadPoolExecutor(len(places)))
        statuses = list(callers.map(_statuses_at_the_limit, places))
    assert statuses == [[200] * 5] * len(places)


def _statuses_at_the_limit(place: Place) -> list[int]:
    """Statuses of requests on one connection of the caller, with pauses about as long as the service's patience."""
    seen = []
    with Caller(place) as caller:
        for number in range(5):
            response = caller.post(a_prompt())
            response.read()
            seen.append(response.status)
            time.sleep(2.8 + 0.15 * number)
    return seen


def test_nginx_as_most_people_write_it_streams_too(folder: Path, service: Process, upstream: ScriptedGemini) -> None:
    """`proxy_pass` alone buffers answers; the service asks it not to, for streams."""
    place = place_for(folder, "plain-nginx", service.port)
    go_on = threading.Event()
    upstream.answers(stream("one ", go_on, "two "))
    site = (
        f"server {{ listen {place.https} ssl; ssl_certificate {place.certificate}; ssl_certificate_key {place.key};"
        f" location / {{ proxy_pass http://127.0.0.1:{place.service}; }} }}"
    )
    with running(nginx_with(place, site), place), Caller(place) as caller:
        response = caller.stream(a_prompt())
        assert response.headers["Content-Type"].startswith("text/event-stream")
        assert next_delta(response) == "one "
        go_on.set()
        assert next_delta(response) == "two "
