"""The ledger under threads, processes, forks and kill -9: exact budgets, shared commits, sums that always agree."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from mtllm.domain.errors import BudgetExceeded
from mtllm.ledger.group_commit import MAX_OPERATIONS
from mtllm.ledger.ledger import Budget, BudgetState, Ledger, open_ledger
from mtllm.project import PROJECT
from tests.support.fakes import FakeClock
from tests.support.ledgers import ATTEMPT, HIT, NOON, SETTLEMENT, Database, FaultyEngine, assert_adds_up, attempt, until


@pytest.fixture
def engine(database: Database) -> FaultyEngine:
    return FaultyEngine(database.engine())


@pytest.fixture
def ledger(engine: FaultyEngine) -> Iterator[Ledger]:
    ledger = Ledger(engine, clock=FakeClock(NOON))
    yield ledger
    engine.gate.set()
    ledger.close()


def in_parallel(count: int, work: Callable[[int], object]) -> list[object]:
    """`work(0)` to `work(count - 1)`, each on a thread of its own, started together."""
    barrier = threading.Barrier(count)

    def started(number: int) -> object:
        barrier.wait(10)
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(started, range(count)))


def admitted(ledger: Ledger, budgets: tuple[Budget, ...]) -> bool:
    try:
        ledger.open(ATTEMPT, budgets)
    except BudgetExceeded:
        return False
    return True


class TestThreads:
    def test_fifty_at_once_never_pass_the_budget(self, ledger: Ledger) -> None:
        """Of 50 simultaneous requests as many are admitted as the budget covers, and no more."""
        outcomes = in_parallel(50, lambda _: admitted(ledger, (Budget("service", 7_999),)))
        assert outcomes.count(True) == 7
        assert ledger.budget_state("service", NOON) == BudgetState(0, 7_000)
        assert_adds_up(ledger)

    def test_concurrent_operations_share_a_commit(self, ledger: Ledger, engine: FaultyEngine) -> None:
        """What gathers during one commit goes into the next together, a refused operation included."""
        ledger.prepare()
        engine.gate.clear()
        with ThreadPoolExecutor(12) as pool:
            first = pool.submit(ledger.open, ATTEMPT)
            engine.held.wait(10)
            before = engine.commits
            others = [pool.submit(ledger.open, ATTEMPT) for _ in range(10)]
            refused = pool.submit(admitted, ledger, (Budget("service", 10),))
            writer = ledger._processes.current().writer
            until(lambda: writer._queue.qsize() == 11)
            engine.gate.set()
            assert len({first.result(), *(other.result() for other in others)}) == 11
            assert refused.result() is False
        assert engine.commits - before == 2
        assert_adds_up(ledger)

    def test_more_than_a_commit_takes_are_all_done(self, ledger: Ledger, engine: FaultyEngine) -> None:
        """What does not fit into one transaction goes into the next; nothing is taken from the queue and dropped."""
        ledger.prepare()
        engine.patience_seconds = 5
        engine.gate.clear()
        many = 2 * MAX_OPERATIONS + 10
        with ThreadPoolExecutor(many + 1) as pool:
            first = pool.submit(ledger.open, ATTEMPT)
            engine.held.wait(10)
            before = engine.commits
            others = [pool.submit(ledger.open, ATTEMPT) for _ in range(many)]
            writer = ledger._processes.current().writer
            until(lambda: writer._queue.qsize() == many)
            engine.gate.set()
            assert len({first.result(), *(other.result() for other in others)}) == many + 1
        assert engine.commits - before == 4

    def test_one_bad_operation_fails_alone(self, ledger: Ledger, engine: FaultyEngine) -> None:
        """A value that cannot be stored does not take those along that share its transaction."""
        ledger.prepare()
        engine.gate.clear()
        with ThreadPoolExecutor(8) as pool:
            pool.submit(ledger.open, ATTEMPT)
            engine.held.wait(10)
            good = [pool.submit(ledger.open, ATTEMPT) for _ in range(3)]
            bad = pool.submit(ledger.open, replace(ATTEMPT, client="\ud800"))
            good += [pool.submit(ledger.open, ATTEMPT) for _ in range(3)]
            ledger.record_hit(HIT)
            writer = ledger._processes.current().writer
            until(lambda: writer._queue.qsize() >= 7)
            engine.gate.set()
            assert len({row.result() for row in good}) == 6
            assert isinstance(bad.exception(), UnicodeEncodeError)
        ledger.flush()
        assert len(list(ledger.export(0, 4e9))) == 8
        assert_adds_up(ledger)

    def test_everything_at_once_adds_up(self, ledger: Ledger) -> None:
        """Opens, settlements, hits, reads, sweeps and pruning on many threads leave sums that agree with the rows."""

        def work(number: int) -> None:
            for turn in range(12):
                row_id = ledger.open(attempt(NOON + number * 60 + turn, key="a" if number % 2 else None))
                ledger.record_hit(HIT._replace(timestamp=NOON + turn * 3_600))
                if number % 4:
                    ledger.settle(row_id, SETTLEMENT)
                    ledger.settle(row_id, SETTLEMENT)
                elif turn % 4 == 0:
                    ledger.mark_unsettled(NOON + 240)
                    ledger.window(24, NOON)
                    list(ledger.export(0, 4e9))
                    ledger.prune(NOON - 1)

        in_parallel(16, work)
        ledger.flush()
        assert_adds_up(ledger)
        assert (ledger.totals().requests, ledger.totals().cost) == (16 * 12 + 12 * 12, 12 * 12 * 300)

    def test_reading_and_writing_do_not_wait_for_each_other(self, ledger: Ledger, engine: FaultyEngine) -> None:
        """Reads go on during a commit that hangs; a write goes on during an export that pauses."""
        for _ in range(3):
            ledger.settle(ledger.open(ATTEMPT), SETTLEMENT)
        export = ledger.export(0, 4e9)
        next(export)
        ledger.open(ATTEMPT)
        engine.gate.clear()
        with ThreadPoolExecutor(1) as pool:
            pending = pool.submit(ledger.open, ATTEMPT)
            engine.held.wait(10)
            assert ledger.totals().cost == 900
            assert len(list(export)) == 3
            engine.gate.set()
            pending.result()


def run(script: str, *arguments: object) -> subprocess.Popen[bytes]:
    """A Python process that runs `script` with the ledger's names at hand; it ends with its standard input."""
    preamble = """
import os, sys, threading
from concurrent.futures import ThreadPoolExecutor
from mtllm.domain.errors import BudgetExceeded
from mtllm.ledger.ledger import Budget, open_ledger
from tests.support.ledgers import ATTEMPT, HIT, NOON, SETTLEMENT, attempt
ledger = open_ledger(sys.argv[1], sync="normal")
"""
    # Python 3.12 and newer warn of a fork beside threads; that it goes well here is what is tested
    command = [
        sys.executable,
        "-W",
        "ignore:This process:DeprecationWarning",
        "-c",
        preamble + script,
        *map(str, arguments),
    ]
    return subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def output(process: subprocess.Popen[bytes]) -> list[int]:
    """The numbers that `process` has printed when it ended well."""
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return [int(word) for word in printed.split()]


class TestProcesses:
    def test_budgets_are_exact_across_processes(self, database: Database) -> None:
        """Processes that start on a new file together share its budget exactly."""
        script = """
def admitted(_):
    try:
        return bool(ledger.open(ATTEMPT, (Budget("service", 30_500),)))
    except BudgetExceeded:
        return False
with ThreadPoolExecutor(8) as pool:
    print(sum(pool.map(admitted, range(40))))
ledger.close()
"""
        processes = [run(script, database.location) for _ in range(3)]
        assert sum(sum(output(process)) for process in processes) == 30
        ledger = open_ledger(database.location)
        assert ledger.budget_state("service", NOON).reserved == 30_000
        assert_adds_up(ledger)
        ledger.close()

    def test_totals_cover_all_processes(self, database: Database) -> None:
        """What one process writes another one reads, while both have the file open."""
        ledger = open_ledger(database.location, clock=FakeClock(NOON))
        ledger.settle(ledger.open(ATTEMPT), SETTLEMENT)
        assert ledger.totals().cost == 300
        output(run("ledger.settle(ledger.open(ATTEMPT), SETTLEMENT); ledger.record_hit(HIT)", database.location))
        assert (ledger.totals().cost, ledger.totals().cached_requests) == (600, 1)
        ledger.close()

    def test_a_forked_child_has_a_writer_of_its_own(self, database: Database) -> None:
        """A ledger used before a fork works on both sides; what the parent has queued is written once."""
        script = """
ledger.settle(ledger.open(ATTEMPT), SETTLEMENT)
ledger.totals()
ledger.record_hit(HIT)
child = os.fork()
ledger.settle(ledger.open(ATTEMPT), SETTLEMENT)
ledger.record_hit(HIT)
ledger.close()
if not child:
    os._exit(ledger.health().dropped_hits)
assert os.waitpid(child, 0)[1] == 0
"""
        output(run(script, database.location))
        ledger = open_ledger(database.location)
        assert (ledger.totals().cost, ledger.totals().cached_requests) == (900, 3)
        assert_adds_up(ledger)
        ledger.close()

    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_a_fork_finds_no_connection_open(self, ledger: Ledger) -> None:
        """The parent goes on after a fork as before it; parent and child write to one file."""
        ledger.settle(ledger.open(ATTEMPT), SETTLEMENT)
        assert ledger.totals().cost == 300
        child = os.fork()
        if not child:
            try:
                ledger.settle(ledger.open(ATTEMPT), SETTLEMENT)
                ledger.close()
                os._exit(0)
            finally:
                os._exit(1)
        ledger.settle(ledger.open(ATTEMPT), SETTLEMENT)
        assert os.waitpid(child, 0)[1] == 0
        assert ledger.totals().cost == 900
        assert_adds_up(ledger)

    def test_the_end_of_a_program_writes_the_last_hits(self, database: Database) -> None:
        """A script that forgets to close its ledger loses nothing."""
        output(run("ledger.record_hit(HIT)", database.location))
        ledger = open_ledger(database.location)
        assert ledger.totals().cached_requests == 1
        ledger.close()

    def test_kill_9_loses_nothing_that_was_promised(self, database: Database) -> None:
        """Killed at any moment, the file is consistent, and every settlement that returned is in it."""
        script = """
def work(number):
    while True:
        row_id = ledger.open(ATTEMPT)
        ledger.record_hit(HIT)
        ledger.settle(row_id, SETTLEMENT)
        os.write(1, b"%d\\n" % row_id)
for number in range(8):
    threading.Thread(target=work, args=(number,), daemon=True).start()
sys.stdin.read()
"""
        promised: set[int] = set()
        for lines in (1, 25, 60, 133):
            process = run(script, database.location)
            assert process.stdout is not None
            promised |= {int(process.stdout.readline()) for _ in range(lines)}
            os.kill(process.pid, signal.SIGKILL)
            rest, _ = process.communicate(timeout=60)
            promised |= {int(line) for line in rest.splitlines(keepends=True) if line.endswith(b"\n")}
            ledger = open_ledger(database.location, clock=FakeClock(NOON + 3_600))
            ledger.prepare()
            assert_adds_up(ledger)
            assert {row.status for row in ledger.export(0, 4e9)} <= {"ok", "hit", "unsettled"}
            assert ledger.totals().requests - ledger.totals().cached_requests >= len(promised)
            ledger.close()
        assert len(promised) >= 219
