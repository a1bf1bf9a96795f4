"""Detection against 200 hostile and 200 benign request lines (tests/data)."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtllm.security.detection import hostile, inspect

Request = tuple[str, str, str]


def labelled(name: str) -> list[Request]:
    """The requests of tests/data/<name>.txt: path, query and user agent."""
    lines = (Path(__file__).parent / "data" / f"{name}.txt").read_text(encoding="utf-8").split("\n")
    fields = [line.split("\t") for line in lines if line and not line.startswith("#")]
    return [(path, query, user_agent) for path, query, user_agent in fields]


HOSTILE = labelled("hostile")
BENIGN = labelled("benign")


def test_both_sets_have_200_distinct_requests() -> None:
    """The figures below stand on enough different requests."""
    assert len(set(HOSTILE)) == 200
    assert len(set(BENIGN)) == 200


def test_hostile_requests_are_found() -> None:
    """At least 95 of 100 hostile requests have a finding."""
    missed = [request for request in HOSTILE if not inspect(*request)]
    assert len(missed) <= 0.05 * len(HOSTILE), missed


def test_hostile_paths_and_queries_are_refused() -> None:
    """At least 95 of 100 requests whose path or query is hostile are refused in block mode, whatever the user agent."""
    targets = [(path, query, "curl/8.5.0") for path, query, _ in HOSTILE if inspect(path, query, "")]
    refused = [target for target in targets if hostile(inspect(*target))]
    assert len(refused) >= 0.95 * len(targets)
    assert len(targets) >= 170


@pytest.mark.parametrize("request_line", BENIGN, ids=repr)
def test_no_benign_request_is_refused(request_line: Request) -> None:
    """A benign request passes in block mode, however odd."""
    assert not hostile(inspect(*request_line))


def test_benign_requests_are_hardly_ever_noted() -> None:
    """At most 1 of 100 benign requests leaves a line in the security log."""
    noted = [request for request in BENIGN if inspect(*request)]
    assert len(noted) <= 0.01 * len(BENIGN), noted
