"""A run: rows to the service, several at once, and in order to the output."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from mtllm.bulk.journal import JournalReader, RunJournal
from mtllm.bulk.tables import Outcome, Row, Table, force
from mtllm.client import Refused, Reply

Ask = Callable[[str], Reply]

OF_THE_ROW = {
    "invalid_request",
    "payload_too_large",
    "content_blocked",
    "max_output_tokens_too_small",
    "upstream_rejected",
    "upstream_invalid_answer",
}
"""Errors that lie in a row. They are written into it; any other error ends the run, which can go on later."""


@dataclass(slots=True)
class Tally:
    """What a run came to so far; `bought` is this run's cost in nano-dollars, `cost` that of all rows."""

    rows: int = 0
    resumed: int = 0
    errors: int = 0
    cost: int = 0
    bought: int = 0
    categories: Counter[str] = field(default_factory=Counter)

    def add(self, outcome: Outcome, *, is_new: bool) -> None:
        """Count a row."""
        self.rows += 1
        self.resumed += not is_new
        self.errors += outcome.error is not None
        self.cost += outcome.cost
        self.bought += outcome.cost if is_new else 0
        if outcome.answer is not None and len(self.categories) <= 100:  # as many as the service allows
            self.categories[outcome.answer] += 1


Pending = tuple[Row, "Outcome | Future[Outcome]"]


def fill(
    table: Table,
    ask: Ask,
    output: Path,
    journal: RunJournal,
    *,
    concurrency: int,
    limit: int | None,
    seen: Callable[[Tally], None],
    stop: Callable[[], None],
) -> Tally:
    """Write each row with its answer to `output`, which gets its name when it is whole.

    `concurrency` rows are with the service at once; `seen` is told after each row; `stop` is called
    when the run ends early, so that nobody waits to ask again. Raises ClientError, TableError,
    JournalError and OSError; what was answered until then is in the journal.
    """
    tally, part = Tally(), output.with_name(f"{output.name}.part")
    earlier = journal.reader()
    with part.open("wb") as file, ThreadPoolExecutor(concurrency) as pool:
        file.write(table.head())
        window: deque[Pending] = deque()

        def settle() -> None:
            row, found = window[0]
            is_new = isinstance(found, Future)
            outcome = found.result() if isinstance(found, Future) else found
            if is_new:
                journal.add(row, outcome)
            window.popleft()
            file.write(table.line(row, outcome))
            tally.add(outcome, is_new=is_new)
            seen(tally)

        try:
            for row in islice(table.rows(), limit):
                window.append((row, _begin(row, earlier, pool, ask)))
                if len(window) > 2 * concurrency:
                    settle()
            while window:
                settle()
        except BaseException:
            stop()
            _keep_what_was_bought(window, journal)
            raise
        finally:
            earlier.close()
        force(file)
    part.replace(output)
    journal.remove()
    return tally


def _begin(row: Row, earlier: JournalReader, pool: ThreadPoolExecutor, ask: Ask) -> Outcome | Future[Outcome]:
    return earlier.find(row) or pool.submit(_outcome, ask, row.text)


def _outcome(ask: Ask, text: str) -> Outcome:
    try:
        reply = ask(text)
    except Refused as error:
        if error.code not in OF_THE_ROW:
            raise
        return Outcome(None, None, error.cost, f"{error.code}: {error}")
    return Outcome(reply.text, reply.model, reply.cost, None)


def _keep_what_was_bought(window: deque[Pending], journal: RunJournal) -> None:
    """Begin nothing more, and put into the journal what is answered still."""
    asked = [(row, found) for row, found in window if isinstance(found, Future) and not found.cancel()]
    wait([found for _, found in asked])
    for row, found in asked:
        if found.exception() is None:
            journal.add(row, found.result())
