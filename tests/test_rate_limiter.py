"""Rate limits: what they are called, who is admitted, and what the client is told."""

from __future__ import annotations

import math
import random
from collections import Counter
from threading import Barrier, Lock, Thread

import pytest

from mtllm.domain.limits import Limit, Verdict, parse_limits
from mtllm.http.headers import limit_header, policy_header
from mtllm.ratelimit.clients import ClientTable
from mtllm.ratelimit.limiter import RateLimiter
from tests.support.fakes import FakeClock

MINUTE = Limit(3, 60)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def table(clock: FakeClock) -> ClientTable:
    return ClientTable(monotonic=clock)


@pytest.fixture
def limiter(table: ClientTable, clock: FakeClock) -> RateLimiter:
    return RateLimiter(table, monotonic=clock)


def hit(limiter: RateLimiter, client: str, *limits: Limit) -> Verdict:
    verdict = limiter.hit(client, limits)
    assert verdict is not None
    return verdict


class TestGrammar:
    @pytest.mark.parametrize(
        ("text", "limits"),
        [
            ("60/minute;1000/hour", (Limit(60, 60), Limit(1000, 3600))),
            ("5/3second", (Limit(5, 3),)),
            (" 5 / 3 Seconds ; 7/ 2days", (Limit(5, 3), Limit(7, 172800))),
            ("", ()),
            ("  ", ()),
        ],
    )
    def test_what_limits_mean(self, text: str, limits: tuple[Limit, ...]) -> None:
        """N in K units, singular or plural, several separated by semicolons; an empty text is no limit."""
        assert parse_limits(text) == limits

    @pytest.mark.parametrize(
        "text",
        ["0/minute", "5/0second", "-1/minute", "five/minute", "5/week", "5", "60/minute;", "1.5/second", "1/1/1"],
    )
    def test_what_is_no_limit_is_named(self, text: str) -> None:
        """A ValueError says which part is no limit and what one looks like."""
        with pytest.raises(ValueError, match=r"is not a rate limit: write N/unit .* for example 60/minute"):
            parse_limits(text)

    @pytest.mark.parametrize(("amount", "seconds"), [(0, 60), (1, 0)])
    def test_a_limit_admits_something_in_some_time(self, amount: int, seconds: int) -> None:
        """A limit of nothing, or in no time, is a mistake."""
        with pytest.raises(ValueError, match="at least 1"):
            Limit(amount, seconds)


class TestHit:
    def test_no_limits_no_verdict(self, limiter: RateLimiter, table: ClientTable) -> None:
        """Without limits nothing is judged and nothing remembered."""
        assert limiter.hit("a", ()) is None
        assert table.size() == 0

    def test_counts_down_then_rejects(self, limiter: RateLimiter, clock: FakeClock) -> None:
        """Each admitted call leaves one fewer; the one too many is told how long to wait."""
        for remaining in (2, 1, 0):
            assert hit(limiter, "a", MINUTE) == Verdict(
                True, MINUTE, remaining, 60 - (2 - remaining) * 10, 0, (MINUTE,)
            )
            clock.advance(10)
        assert hit(limiter, "a", MINUTE) == Verdict(False, MINUTE, 0, 30, 30, (MINUTE,))

    def test_a_window_slides(self, limiter: RateLimiter, clock: FakeClock) -> None:
        """A place frees up when the oldest call leaves the window, not when a clock minute ends."""
        for _ in range(3):
            hit(limiter, "a", MINUTE)
            clock.advance(10)
        clock.advance(29.9)
        assert not hit(limiter, "a", MINUTE).admitted
        clock.advance(0.1)
        assert hit(limiter, "a", MINUTE).admitted
        assert hit(limiter, "a", MINUTE).retry_after == 10

    def test_rejected_calls_cost_nothing(self, limiter: RateLimiter, clock: FakeClock) -> None:
        """Hammering while rejected does not prolong the wait."""
        for _ in range(50):
            hit(limiter, "a", MINUTE)
            clock.advance(1)
        clock.advance(10)
        assert hit(limiter, "a", MINUTE).admitted

    def test_several_windows_all_or_nothing(self, limiter: RateLimiter, clock: FakeClock) -> None:
        """A call that one window rejects is counted in none; the verdict is of the one with least remaining."""
        short, long = Limit(2, 10), Limit(5, 100)
        assert hit(limiter, "a", short, long).limit == short
        hit(limiter, "a", short, long)
        for _ in range(10):
            assert hit(limiter, "a", short, long).limit == short
        clock.advance(10)
        assert hit(limiter, "a", short, long)[:3] == (True, short, 1)
        assert hit(limiter, "a", short, long)[:3] == (True, short, 0)
        clock.advance(10)
        assert hit(limiter, "a", short, long)[:3] == (True, long, 0)
        assert hit(limiter, "a", short, long) == Verdict(False, long, 0, 80, 80, (short, long))

    def test_a_rejection_waits_for_no_lock(self, limiter: RateLimiter, table: ClientTable, clock: FakeClock) -> None:
        """A client at its limit is told so even while another call of it is being judged, until there is room again."""
        for _ in range(3):
            hit(limiter, "a", MINUTE)
        with table.locked("a"):
            clock.advance(59)
            assert hit(limiter, "a", MINUTE) == Verdict(False, MINUTE, 0, 1, 1, (MINUTE,))
        clock.advance(1)
        assert hit(limiter, "a", MINUTE).admitted

    def test_the_longest_wait_is_told(self, limiter: RateLimiter) -> None:
        """When several windows are full, the client must wait for the last of them."""
        limits = (Limit(1, 10), Limit(1, 100), Limit(1, 50))
        hit(limiter, "a", *limits)
        assert hit(limiter, "a", *limits).retry_after == 100

    def test_clients_do_not_share(self, limiter: RateLimiter) -> None:
        """Each client has its own count."""
        for client in "abc":
            assert hit(limiter, client, MINUTE).remaining == 2

    def test_changed_limits_hold_at_once(self, limiter: RateLimiter, clock: FakeClock) -> None:
        """Lowered limits count the calls already made, and still tell a true wait; raised ones admit more."""
        for _ in range(3):
            hit(limiter, "a", MINUTE)
            clock.advance(10)
        lowered = hit(limiter, "a", Limit(1, 60))
        assert (lowered.admitted, lowered.remaining, lowered.retry_after) == (False, 0, 50)
        assert hit(limiter, "a", Limit(10, 60)).remaining == 6
        assert hit(limiter, "a", Limit(10, 60), Limit(10, 600)).remaining == 5

    def test_limits_that_come_back_know_what_was_admitted_meanwhile(
        self, limiter: RateLimiter, clock: FakeClock
    ) -> None:
        """The wait is true after calls that other limits over the same window admitted."""
        tight, loose = Limit(1, 10), Limit(5, 10)
        hit(limiter, "a", tight)
        clock.advance(5)
        assert hit(limiter, "a", loose).admitted
        clock.advance(1)
        assert hit(limiter, "a", tight).retry_after == 9

    @pytest.mark.parametrize("start", [0.1, 12345.678, 1e9 + 0.3])
    @pytest.mark.parametrize("step", [0.1, 0.7, 1 / 3])
    def test_the_promise_to_admit_is_kept(
        self, limiter: RateLimiter, clock: FakeClock, start: float, step: float
    ) -> None:
        """Whoever waits retry_after seconds is admitted, rounding of the clock notwithstanding."""
        clock.now = start
        for _ in range(3):
            hit(limiter, "a", MINUTE)
            clock.advance(step)
        rejected = hit(limiter, "a", MINUTE)
        clock.advance(rejected.retry_after)
        assert hit(limiter, "a", MINUTE).admitted

    def test_the_promise_holds_at_any_moment(self, limiter: RateLimiter, clock: FakeClock) -> None:
        """The same for moments whose sums and differences do not fit a float."""
        chance = random.Random(1)
        for number in range(1000):
            clock.now = chance.uniform(0, 1)
            hit(limiter, str(number), Limit(1, 60))
            clock.advance(chance.uniform(0, 59))
            clock.advance(hit(limiter, str(number), Limit(1, 60)).retry_after)
            assert hit(limiter, str(number), Limit(1, 60)).admitted

    def test_two_hundred_threads_share_a_hundred_calls(self, limiter: RateLimiter) -> None:
        """Of 200 calls at once against a limit of 100, exactly 100 are admitted."""
        barrier, lock, outcomes = Barrier(200), Lock(), Counter[bool]()

        def call() -> None:
            barrier.wait()
            verdict = hit(limiter, "a", Limit(100, 60), Limit(1000, 3600))
            with lock:
                outcomes[verdict.admitted] += 1

        threads = [Thread(target=call) for _ in range(200)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert outcomes == {True: 100, False: 100}


class TestFlood:
    @pytest.fixture
    def table(self, clock: FakeClock) -> ClientTable:
        return ClientTable(10, monotonic=clock)

    def exhaust(self, limiter: RateLimiter, client: str) -> None:
        while hit(limiter, client, MINUTE).admitted:
            pass

    def test_new_clients_do_not_free_a_limited_one(self, limiter: RateLimiter, table: ClientTable) -> None:
        """A flood of addresses evicts each other, not the one at its limit, even when that one keeps quiet."""
        self.exhaust(limiter, "limited")
        for number in range(1000):
            hit(limiter, f"new-{number}", MINUTE)
        assert table.size() == 10
        assert not hit(limiter, "limited", MINUTE).admitted

    def test_a_table_of_limited_clients_makes_room(self, limiter: RateLimiter, table: ClientTable) -> None:
        """When everybody is at a limit, one of them goes: the table is bounded whatever happens."""
        for number in range(30):
            self.exhaust(limiter, f"limited-{number}")
        assert table.get_stats() == {"size": 10, "max_size": 10, "protected": 10, "evictions": 20}

    def test_a_client_is_protected_for_as_long_as_it_is_rejected(self, limiter: RateLimiter, clock: FakeClock) -> None:
        """Also where a longer window takes over from the one that it was protected for."""
        for _ in range(2):
            hit(limiter, "limited", Limit(2, 10))
        clock.advance(5)
        assert not hit(limiter, "limited", Limit(1, 100)).admitted
        clock.advance(6)
        hit(limiter, "limited", Limit(1, 100))
        for number in range(100):
            hit(limiter, f"new-{number}", Limit(2, 10))
        assert not hit(limiter, "limited", Limit(1, 100)).admitted

    def test_those_whose_time_is_over_go_first(
        self, limiter: RateLimiter, table: ClientTable, clock: FakeClock
    ) -> None:
        """Clients that were at a limit once do not crowd out the active ones for ever."""
        for number in range(9):
            self.exhaust(limiter, f"limited-{number}")
        clock.advance(60)
        for _ in range(2):
            for number in range(9):
                hit(limiter, f"active-{number}", MINUTE)
        assert [hit(limiter, f"active-{number}", MINUTE).remaining for number in range(9)] == [0] * 9

    def test_a_client_that_comes_back_is_like_any_other(
        self, limiter: RateLimiter, table: ClientTable, clock: FakeClock
    ) -> None:
        """When its window has passed a client is no longer protected."""
        self.exhaust(limiter, "a")
        hit(limiter, "a", MINUTE)
        assert table.get_stats()["protected"] == 1
        clock.advance(60)
        assert hit(limiter, "a", MINUTE).remaining == 2
        assert table.get_stats()["protected"] == 0


class TestHeaders:
    def test_policy(self) -> None:
        """Each quota with its window; asked again, the same string."""
        limits = parse_limits("60/minute;1000/hour")
        assert policy_header(limits) == '"60-in-60";q=60;w=60, "1000-in-3600";q=1000;w=3600'
        assert policy_header(limits) is policy_header(parse_limits("60/minute;1000/hour"))

    def test_limit(self) -> None:
        """Remaining calls and the seconds until there are more, rounded up."""
        verdict = Verdict(True, Limit(60, 60), 42, 17.2, 0.0, (Limit(60, 60),))
        assert limit_header(verdict) == '"60-in-60";r=42;t=18'

    def test_a_rejection_tells_the_same_time_twice(self, limiter: RateLimiter, clock: FakeClock) -> None:
        """The reset of a rejected call is its retry_after, so RateLimit and Retry-After agree."""
        for _ in range(3):
            hit(limiter, "a", MINUTE)
        clock.advance(0.5)
        rejected = hit(limiter, "a", MINUTE)
        assert limit_header(rejected) == f'"3-in-60";r=0;t={math.ceil(rejected.retry_after)}'
