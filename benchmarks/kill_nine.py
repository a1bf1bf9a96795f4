"""Kill the service in the middle of its work, again and again, and look whether the books still balance.

    python -m benchmarks.kill_nine [--kills 20] [--seed N]

32 clients ask `python app.py` as fast as they are answered; at a random moment it is killed (kill -9) and started again
on the same folders. Gemini is played by this process, which counts every call it gets. After each kill, a ledger opened
anew must show:

    every answer that a client received, settled with the nano-dollars of its header or its `done` event
    every call that was counted, settled or still open
    totals, days and the day's budget that equal the sums of the rows

Prints a line per kill; the exit status is 1 when anything is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse, IncompleteRead
from pathlib import Path

from benchmarks import tables
from benchmarks.servers import KEY, Server, everything_on, free_port
from mtllm.domain.times import LATEST
from mtllm.emulator import EmulatedReply, Emulator, GeminiCall, canned, compose, prompt_tokens
from mtllm.ledger.ledger import HIT, OPEN, SERVICE_SCOPE, UNSETTLED, ExportRow, Ledger, open_ledger

CLIENTS = 32
KILLS = 20
LONGEST_LIFE = 1.5
"""Seconds from the first paid answer until the kill, at most."""
CALL_SECONDS = (0.005, 0.06)
HOT_PROMPTS = 40
HOT_SHARE = 0.5
"""Of the requests, those that ask one of the few prompts whose answers are kept; the others ask what nobody asked."""
STREAM_SHARE = 0.2
INPUT_NANO, OUTPUT_NANO = 100, 400
"""What a token of the default model costs."""
ANSWER_SECONDS = 30.0


class CountingGemini(Emulator):
    """Gemini's stand-in; remembers every call, by its prompt, from the moment it arrives."""

    def __init__(self) -> None:
        super().__init__(answer=self._counted)
        self._counting = threading.Lock()
        self._calls: Counter[str] = Counter()
        self._prices: dict[str, int] = {}

    def snapshot(self) -> tuple[Counter[str], dict[str, int]]:
        """Calls, and what one of them costs, by prompt."""
        with self._counting:
            return self._calls.copy(), self._prices.copy()

    def _counted(self, call: GeminiCall) -> EmulatedReply:
        if call.generates:
            price = prompt_tokens(call) * INPUT_NANO + compose(call).tokens * OUTPUT_NANO
            with self._counting:
                self._calls[call.prompt] += 1
                self._prices[call.prompt] = price
            self.closing.wait(random.uniform(*CALL_SECONDS))
        return canned(call)


@dataclass(frozen=True, slots=True)
class Received:
    """One answer as far as it must be in the ledger."""

    request_id: str
    prompt: str
    status: int
    cached: bool
    nanodollars: int


@dataclass(slots=True)
class Clients:
    """Who asks, what they asked, and what they received; grows over all lives of the service."""

    asked: list[tuple[str, str]] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)
    first_paid: threading.Event = field(default_factory=threading.Event)

    def ask(self, port: int, chance: random.Random) -> None:
        """Ask until the service is gone."""
        connection = HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
        with closing(connection), suppress(OSError, HTTPException):
            while True:
                self._ask_once(connection, chance)

    def _ask_once(self, connection: HTTPConnection, chance: random.Random) -> None:
        request_id = uuid.UUID(int=chance.getrandbits(128)).hex
        prompt = f"hot {chance.randrange(HOT_PROMPTS)}" if chance.random() < HOT_SHARE else f"once {request_id}"
        streams = chance.random() < STREAM_SHARE
        self.asked.append((request_id, prompt))
        headers = {"Content-Type": "application/json", "X-API-Key": KEY, "X-Request-ID": request_id}
        body = json.dumps({"prompt": prompt, "stream": streams})
        connection.request("POST", "/api/v1/generate/text", body, headers)
        response = connection.getresponse()
        nanodollars = int(response.headers["X-Cost-Nanodollars"])
        if response.headers["X-Cost-Pending"]:
            billed = _streamed_nanodollars(response)
            if billed is None:
                return
            nanodollars = billed
        cached = response.headers["X-Cached"] == "true"
        self.received.append(Received(request_id, prompt, response.status, cached, nanodollars))
        if nanodollars:
            self.first_paid.set()
        response.read()


def _streamed_nanodollars(response: HTTPResponse) -> int | None:
    """What the `done` event says, if that came; the rest of the body is read."""
    try:
        body = response.read()
    except IncompleteRead as cut:
        body = cut.partial
    _, _, done = body.partition(b"event: done\ndata: ")
    return int(json.loads(done)["cost"]["nanodollars"]) if done.endswith(b"\n\n") else None


@dataclass(frozen=True, slots=True)
class Life:
    """One life of the service; `seconds` is the time from its first paid answer to its end."""

    seconds: float
    answers: int
    paid: int
    hot_hit_ratio: float
    calls: int
    unfinished: int
    """Rows of calls that the end cut off, of all lives so far."""
    broken: tuple[str, ...]
    """What does not add up, a sentence each."""


def lives(
    folder: Path, count: int, *, seed: int, longest: float = LONGEST_LIFE, end: signal.Signals = signal.SIGKILL
) -> Iterator[Life]:
    """Start the service `count` times on `folder`, end each life by `end` at a random moment, and audit the ledger."""
    chance = random.Random(seed)
    clients = Clients()
    with CountingGemini() as gemini:
        for _ in range(count):
            known = len(clients.received)
            seconds = chance.uniform(0.05, longest)
            _live(everything_on(folder, gemini.url), clients, chance, seconds, end)
            fresh = clients.received[known:]
            hot = [answer.cached for answer in fresh if answer.prompt.startswith("hot") and answer.status == 200]
            calls, prices = gemini.snapshot()
            with closing(open_ledger(folder / "data" / "ledger.sqlite3")) as ledger:
                rows = list(ledger.export(0, LATEST))
                broken = (*audit(rows, clients, calls, prices), *sums(ledger, rows))
            unfinished = sum(row.status in (OPEN, UNSETTLED) for row in rows)
            paid = sum(answer.nanodollars > 0 for answer in fresh)
            ratio = sum(hot) / len(hot) if hot else 0.0
            yield Life(seconds, len(fresh), paid, ratio, calls.total(), unfinished, broken)


def _live(
    settings: dict[str, str], clients: Clients, chance: random.Random, seconds: float, end: signal.Signals
) -> None:
    port = free_port()
    environ = {**os.environ, **settings, "PORT": str(port), "THREADS": str(CLIENTS + 8), "DAILY_BUDGET_USD": "1000"}
    clients.first_paid.clear()
    seeds = [chance.getrandbits(64) for _ in range(CLIENTS)]
    threads = [threading.Thread(target=clients.ask, args=(port, random.Random(seed))) for seed in seeds]
    with Server(["app.py"], port, environ=environ, core=None) as server:
        for thread in threads:
            thread.start()
        clients.first_paid.wait(ANSWER_SECONDS)
        time.sleep(seconds)
        os.kill(server.pid, end)
        for thread in threads:
            thread.join()


def audit(rows: Iterable[ExportRow], clients: Clients, calls: Counter[str], prices: dict[str, int]) -> Iterator[str]:
    """What of the answers and calls is not in the rows as it should be."""
    attempts: defaultdict[str, list[ExportRow]] = defaultdict(list)
    for row in rows:
        if row.status != HIT:
            attempts[row.request_id].append(row)
    for answer in clients.received:
        booked = sum(row.total_cost for row in attempts[answer.request_id])
        if booked != answer.nanodollars:
            yield f"{answer.request_id}: the client was told {answer.nanodollars} nano-dollars, the ledger has {booked}"
        if answer.status == 200 and not answer.cached and answer.nanodollars != prices[answer.prompt]:
            yield f"{answer.request_id}: {answer.nanodollars} nano-dollars is not what Gemini billed"
    opened = Counter(dict.fromkeys(calls, 0))
    for request_id, prompt in clients.asked:
        opened[prompt] += len(attempts[request_id])
    for prompt, count in calls.items():
        if count > opened[prompt]:
            yield f"{prompt!r}: Gemini was called {count} times, the ledger has {opened[prompt]} rows"


def sums(ledger: Ledger, rows: list[ExportRow]) -> Iterator[str]:
    """Which sums differ from those of the rows."""
    finished = [row for row in rows if row.status not in (OPEN, UNSETTLED)]
    cost, saved = sum(row.total_cost for row in finished), sum(row.saved for row in finished)
    completions = sum(row.status in ("ok", HIT) for row in finished)
    totals, days = ledger.totals(), ledger.usage(0, LATEST, "day")
    if (totals.requests, totals.cost, totals.saved) != (completions, cost, saved):
        yield f"the totals {totals} are not {completions} completions, {cost} and {saved} nano-dollars"
    if sum(day.cost for day in days) != cost:
        yield "the days do not add up to the rows"
    budgets = [ledger.budget_state(SERVICE_SCOPE, at) for at in {row.timestamp // 86_400 * 86_400 for row in rows}]
    if sum(state.spent for state in budgets) != cost:
        yield "what the budget counts as spent is not the cost of the rows"
    if sum(state.reserved for state in budgets) != sum(row.reserved for row in rows):
        yield "what the budget counts as reserved is not what the rows reserve"


def main(arguments: list[str] | None = None) -> int:
    """Print a table; 1 when something was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=KILLS, help=f"how often ({KILLS})")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the random moments")
    options = parser.parse_args(arguments)
    print(f"{CLIENTS} clients, {options.kills} kills, seed {options.seed}\n")
    print(
        tables.head("kill", "after s", "answers", "paid", "hot prompts hit", "calls so far", "cut off so far", "broken")
    )
    broken: list[str] = []
    with tempfile.TemporaryDirectory(prefix="mtllm-kill-nine-") as folder:
        for number, life in enumerate(lives(Path(folder), options.kills, seed=options.seed), start=1):
            figures = (number, life.answers, life.paid, f"{life.hot_hit_ratio:.1%}", life.calls, life.unfinished)
            first, *others = map(str, figures)
            print(tables.row(first, f"{life.seconds:.2f}", *others, str(len(life.broken))), flush=True)
            broken += life.broken
    print("\n" + ("\n".join(dict.fromkeys(broken)) or "Nothing is missing, all sums agree."))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
