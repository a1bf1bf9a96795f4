"""Whatever comes in, there is an answer: no defect, no hang, all headers.

Briefly; `python -m benchmarks.fuzz` does the same at length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, given, settings  # after the check that it is there

from app import Api
from tests.support.fuzzing import (
    ADMIN,
    KEY,
    PARSERS,
    check_raw,
    check_request,
    raw_requests,
    requests,
    task_requests,
)
from tests.support.raw_http import call_wsgi
from tests.support.serving import serving


def briefly(examples: int) -> settings:
    return settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@pytest.fixture
def guarded(make_app: Callable[..., Api]) -> Api:
    """A service with keys, a trusted proxy and short bodies, and a scripted Gemini behind it."""
    return make_app(
        api_keys=f"fuzz:{KEY}", admin_api_key=ADMIN, rate_limits="", trusted_proxies="1", max_request_bytes="4096"
    )


def test_any_request_is_answered_in_our_shape(guarded: Api) -> None:
    """Methods, paths, queries, header fields and bodies, each plausible to absurd."""
    given(requests())(briefly(80)(lambda request: check_request(guarded, request)))()


def test_any_task_is_answered_in_our_shape(guarded: Api) -> None:
    """With a key and declared as JSON, so that it is the body that is judged; with and without an answer at its end."""
    given(task_requests())(briefly(120)(lambda request: check_request(guarded, request)))()


def test_any_bytes_on_a_socket_leave_the_service_well(guarded: Api) -> None:
    """Nearly HTTP, through the server's own parser."""
    with serving(guarded) as port:
        given(raw_requests)(briefly(120)(lambda data: check_raw(port, data)))()
    assert call_wsgi(guarded).status == 200


@pytest.mark.parametrize("name", sorted(PARSERS))
def test_any_text_is_parsed_or_refused(name: str) -> None:
    """Each parser of something from outside says what it means, or refuses it in its own way, and nothing else."""
    strategy, check = PARSERS[name]

    def holds(value: Any) -> None:
        check(value)

    given(strategy)(briefly(100)(holds))()
