"""The service with REDIS_URL: several instances as one, alone when Redis is gone, restarted one after another."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from threading import Event, Lock
from typing import Any

import pytest

from app import Api
from mtllm.project import PROJECT
from mtllm.settings import SettingsError
from tests.support.redis_server import RedisServer, running_redis, wait_until
from tests.support.scripted_gemini import ScriptedGemini, after, text, usage

TEXT = "/api/v1/generate/text"
MakeApp = Callable[..., Api]


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture
def make_instance(make_app: MakeApp, redis: RedisServer, tmp_path: Path) -> Callable[..., Api]:
    """Makes instances that share nothing but Redis."""

    def make(name: str, *, patient: bool = True, **settings: str) -> Api:
        folders = {f"{kind}_dir": str(tmp_path / name / kind) for kind in ("data", "cache", "log")}
        url = redis.patient_url if patient else redis.url
        app = make_app(real_time=True, **{"redis_url": url, "admin_api_key": "secret", **folders, **settings})
        if patient:
            wait_until(lambda: app.service.redis is not None and app.service.redis.health().up)
        return app

    return make


def ask(app: Api, prompt: str = "x") -> Any:
    return app.test_client().post(TEXT, json={"prompt": prompt})


def redis_check(app: Api) -> tuple[int, str]:
    answer = app.test_client().get("/api/v1/health/ready")
    assert answer.json is not None
    return answer.status_code, answer.json["checks"]["redis"]["status"]


class TestSharedState:
    def test_an_answer_bought_by_one_is_a_hit_for_all(self, make_instance: MakeApp, gemini: ScriptedGemini) -> None:
        """One call to Gemini, whatever the instance."""
        one, other = make_instance("one"), make_instance("other")
        assert ask(one).headers["X-Cached"] == "false"
        for _ in range(2):
            hit = ask(other)
            assert (hit.headers["X-Cached"], hit.headers["Cache-Status"][:10]) == ("true", "mtllm; hit")
        assert hit.json == ask(one).json
        assert gemini.count == 1

    def test_redis_never_learns_a_prompt(self, make_instance: MakeApp, redis: RedisServer) -> None:
        """Keys are digests, and the values answers."""
        one = make_instance("one")
        one.test_client().post(TEXT, json={"prompt": "canary-prompt"})
        for key in redis.say("KEYS", "*"):
            value = redis.say("GET", key) if redis.say("TYPE", key) == b"string" else b""
            assert b"canary-prompt" not in key
            assert b"canary-prompt" not in value.partition(b'"generated_text"')[0]

    def test_deletion_reaches_all_instances(self, make_instance: MakeApp) -> None:
        """Those that had the answer themselves forget it within a beat."""
        one, other = make_instance("one"), make_instance("other")
        ask(one)
        assert ask(other).headers["X-Cached"] == "true"
        deleted = one.test_client().delete("/api/v1/cache", headers={"X-API-Key": "secret"})
        assert deleted.json == {"deleted": 1}
        wait_until(lambda: other.service.cache.get_stats()["size"] == 0)
        assert ask(other).headers["X-Cached"] == "false"

    def test_one_limit_for_all(self, make_instance: MakeApp) -> None:
        """The instances admit together what one would."""
        instances = [make_instance(name, rate_limits="3/hour") for name in ("one", "other")]
        answers = [ask(instances[number % 2]) for number in range(5)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
        assert [answer.headers["X-RateLimit-Remaining"] for answer in answers] == ["2", "1", "0", "0", "0"]
        assert 3500 < int(answers[-1].headers["Retry-After"]) <= 3600

    def test_the_total_is_everyones(self, make_instance: MakeApp, gemini: ScriptedGemini) -> None:
        """X-Cost-Overall has this request's cost at once and others' soon, and never falls."""
        gemini.answers(usage(), usage())
        one, other = make_instance("one"), make_instance("other")
        first = ask(one, "a").headers
        assert first["X-Cost-Overall"] == first["X-Cost-Total"]
        wait_until(lambda: other.service.spend.total() == int(first["X-Cost-Nanodollars"]))
        second = ask(other, "b").headers
        both = int(first["X-Cost-Nanodollars"]) + int(second["X-Cost-Nanodollars"])
        assert second["X-Cost-Overall"] == f"{both / 10**9:.6f}"
        wait_until(lambda: one.service.spend.total() == both)

    def test_readiness_says_that_redis_is_there(self, make_instance: MakeApp) -> None:
        """The check is there where REDIS_URL is, and counted in /stats."""
        one = make_instance("one")
        assert redis_check(one) == (200, "ok")
        stats = one.test_client().get("/stats", headers={"X-API-Key": "secret"}).json
        assert stats is not None
        assert stats["redis_stats"] == {"up": True, "failures": 0, "refused": 0}


class TestWithoutRedis:
    def test_a_service_without_redis_starts_and_serves(
        self, make_instance: MakeApp, redis: RedisServer, tmp_path: Path
    ) -> None:
        """With caches, limits and total of its own; readiness tells, the error log once; and it heals."""
        redis.stop()
        one = make_instance("one", patient=False, rate_limits="3/hour")
        statuses = [ask(one).status_code for _ in range(4)]
        assert statuses == [200, 200, 200, 429]
        assert ask(one, "other").headers["X-Cost-Overall"] != "0.000000"
        assert redis_check(one) == (200, "degraded")
        redis.start()
        wait_until(lambda: redis_check(one) == (200, "ok"))
        wait_until(lambda: redis.say("GET", "mtllm:1:spend") == str(one.service.spend.total()).encode())
        one.service.logger.flush()
        told = [json.loads(line) for line in (tmp_path / "one" / "log" / "api_errors.log").read_text().splitlines()]
        assert [line.get("event") for line in told].count("redis") == 2

    @pytest.mark.parametrize("trouble", ["freeze", "stop"])
    def test_no_request_fails_when_redis_goes(self, make_instance: MakeApp, redis: RedisServer, trouble: str) -> None:
        """Gone or frozen in the midst of it."""
        one = make_instance("one", patient=False)
        for number in range(12):
            if number == 4:
                getattr(redis, trouble)()
            assert ask(one, str(number % 3)).status_code == 200
        wait_until(lambda: redis_check(one) == (200, "degraded"))
        redis.thaw() if trouble == "freeze" else redis.start()
        wait_until(lambda: redis_check(one) == (200, "ok"))

    @pytest.mark.parametrize("url", ["redis://host:port", "redis://:secret@[::1"])
    def test_a_url_that_is_none_is_told_at_the_start(self, make_app: MakeApp, url: str) -> None:
        """By the setting's name, without its value."""
        pytest.importorskip("redis")
        with pytest.raises(SettingsError, match="REDIS_URL: is not a URL that redis understands") as told:
            make_app(redis_url=url)
        assert "secret" not in str(told.value)


class Instance:
    """A real `python app.py` on a port of its own."""

    def __init__(self, environ: dict[str, str]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._environ = {**environ, "PORT": str(self.port)}
        self.in_rotation = False
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=PROJECT, env=self._environ, stdout=subprocess.DEVNULL
        )

    def join(self) -> None:
        """Take part as soon as it is ready."""
        wait_until(self._ready)
        self.in_rotation = True

    def terminate(self) -> int:
        """Ask it to leave; the status it left with."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(30)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def post(self, prompt: str) -> tuple[int, dict[str, Any]]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("POST", TEXT, json.dumps({"prompt": prompt}), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def get(self, path: str) -> dict[str, Any]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path)
            told: dict[str, Any] = json.loads(connection.getresponse().read())
            return told
        finally:
            connection.close()

    def _ready(self) -> bool:
        try:
            checks = self.get("/api/v1/health/ready")["checks"]
        except OSError:
            return False
        return all(checks[name]["status"] == "ok" for name in ("redis", "ledger"))


class Balancer:
    """Sends each request to an instance in rotation, and to another one when the first is leaving."""

    def __init__(self, instances: list[Instance]) -> None:
        self._instances = instances
        self._sent = 0
        self._lock = Lock()
        self.outcomes: Counter[str] = Counter()

    def seen_more(self) -> Callable[[], bool]:
        """A function that tells whether some more requests were answered since now."""
        before = self.outcomes.total()
        return lambda: self.outcomes.total() > before + 10

    def post(self, prompt: str) -> None:
        while True:
            with self._lock:
                self._sent += 1
                there = [instance for instance in self._instances if instance.in_rotation]
                instance = there[self._sent % len(there)]
            try:
                status, body = instance.post(prompt)
            except ConnectionRefusedError:
                outcome = "refused"
            else:
                outcome = str(status) if status == 200 else body["code"]
            with self._lock:
                self.outcomes[outcome] += 1
                if outcome not in ("draining", "refused"):
                    return
                instance.in_rotation = False


@pytest.fixture
def instances(redis: RedisServer, environment: dict[str, str], gemini: ScriptedGemini) -> Iterator[list[Instance]]:
    """Two that share Redis and a ledger, in front of a Gemini that takes its time."""
    gemini.answers(*[after(0.05, text(f"answer {number}")) for number in range(500)])
    environ = {**os.environ, **environment, "REDIS_URL": redis.patient_url, "THREADS": "8", "RATE_LIMITS": "150/hour"}
    made = [Instance(environ), Instance(environ)]
    try:
        for instance in made:
            instance.start()
        for instance in made:
            instance.join()
        yield made
    finally:
        for instance in made:
            instance.kill()


def test_restarting_one_after_another_under_load(instances: list[Instance]) -> None:
    """No request fails but those told `draining`, no record is lost, and no limit begins anew."""
    balancer, enough = Balancer(instances), Event()
    numbers = iter(range(10_000))

    def load() -> None:
        while not enough.is_set():
            balancer.post(f"prompt {next(numbers)}")
            time.sleep(0.05)

    with ThreadPoolExecutor(3) as pool:
        loads = [pool.submit(load) for _ in range(3)]
        try:
            for instance in instances:
                wait_until(balancer.seen_more())
                assert instance.terminate() == 0
                instance.in_rotation = False
                instance.start()
                instance.join()
            wait_until(lambda: balancer.outcomes["rate_limited"] >= 3)
            wait_until(balancer.seen_more())
        finally:
            enough.set()
        for one in loads:
            one.result()
    assert set(balancer.outcomes) <= {"200", "rate_limited", "draining", "refused"}
    assert balancer.outcomes["200"] == 150
    for instance in instances:
        assert instance.get("/stats")["overall_stats"]["total_requests_all_time"] == 150
