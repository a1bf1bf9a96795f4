"""The scripted Gemini misbehaves exactly as told."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Semaphore

import pytest

from mtllm.emulator import Usage, parse_model
from tests.support import scripted_gemini as play
from tests.support.gemini_client import GeminiClient, answer_to, asking, events, said
from tests.support.scripted_gemini import CUT, IDLE, Fault, ScriptedGemini


@pytest.fixture
def gemini() -> Iterator[ScriptedGemini]:
    with ScriptedGemini() as running:
        yield running


class TestScript:
    def test_steps_are_taken_in_order_then_the_default(self, gemini: ScriptedGemini) -> None:
        """And every call is recorded, with what it asked."""
        gemini.answers(play.text("one"), play.text("two"))
        answers = [said(answer_to(gemini.url, asking(f"p{number}", temperature=0.5))) for number in range(3)]
        assert answers[:2] == ["one", "two"]
        assert "canned" in answers[2]
        assert [call.prompt for call in gemini.calls] == ["p0", "p1", "p2"]
        assert (gemini.count, gemini.calls[0].temperature, gemini.calls[0].key) == (3, 0.5, "k")

    def test_a_quota_error_has_googles_details(self, gemini: ScriptedGemini) -> None:
        """QuotaFailure, RetryInfo and ErrorInfo, as a document; in an array where an array was asked for."""
        step = play.status(429, retry_delay="45.837906927s", quota_id=play.PER_DAY, reason="RATE_LIMIT_EXCEEDED")
        gemini.answers(step, step, step)
        with GeminiClient(gemini.url) as client:
            status, plain = client.post("generateContent", asking())
            _, array = client.post("streamGenerateContent", asking())
            _, event = client.post("streamGenerateContent?alt=sse", asking())
        assert status == 429
        assert plain["error"]["status"] == "RESOURCE_EXHAUSTED"
        quota, retry, info = plain["error"]["details"]
        assert quota["violations"][0]["quotaId"] == play.PER_DAY
        assert retry["retryDelay"] == "45.837906927s"
        assert info["reason"] == "RATE_LIMIT_EXCEEDED"
        assert array == [plain]
        assert event == plain

    def test_what_was_billed_is_counted(self, gemini: ScriptedGemini) -> None:
        """Answers, blocked prompts, cut replies and finished streams are; errors and unreported usage are not."""
        gemini.answers(
            play.usage("12345678", thoughts=7, cached=100),
            play.blocked_prompt(),
            play.status(503),
            play.no_usage(),
            play.stream("1234", "5678", thoughts=1),
            play.stream("1234", Fault(503)),
        )
        with GeminiClient(gemini.url) as client:
            used = client.post("generateContent", asking("1234"))[1]["usageMetadata"]
            for action in ["generateContent"] * 3 + ["streamGenerateContent"] * 2:
                client.post(action, asking("1234"))
        assert used == {
            "promptTokenCount": 101,
            "candidatesTokenCount": 2,
            "thoughtsTokenCount": 7,
            "cachedContentTokenCount": 100,
            "totalTokenCount": 110,
        }
        assert gemini.delivered == Usage(prompt=103, candidates=4, thoughts=8, cached=100)

    def test_the_default_answers_are_billed(self, gemini: ScriptedGemini) -> None:
        """The totals are those that the replies reported, streamed or not."""
        with GeminiClient(gemini.url) as client:
            _, plain = client.post("generateContent", asking())
            _, pieces = client.post("streamGenerateContent", asking(maxOutputTokens=5))
            client.post("countTokens", asking())
        reported = plain["usageMetadata"]["totalTokenCount"] + pieces[-1]["usageMetadata"]["totalTokenCount"]
        assert gemini.delivered.total == reported

    def test_played_models_are_billed_for_what_they_answer(self) -> None:
        """Thoughts included; a refusal costs nothing."""
        models = (parse_model("old=closed"), parse_model("new=level"))
        with ScriptedGemini(default=play.played(*models)) as gemini, GeminiClient(gemini.url) as client:
            assert client.post("generateContent", asking(), model="old")[0] == 404
            assert gemini.delivered == Usage()
            usage = client.post("generateContent", asking(), model="new")[1]["usageMetadata"]
        assert (gemini.delivered.thoughts, gemini.delivered.total) == (256, usage["totalTokenCount"])

    @pytest.mark.parametrize(
        ("step", "content"),
        [
            (play.garbage(b"\xff{"), b"\xff{"),
            (play.empty_body(), b""),
            (play.empty_object(), b"{}"),
            (play.wrong_content_type(), b"<html><body>Sign in to continue</body></html>"),
        ],
    )
    def test_unreadable_replies(self, gemini: ScriptedGemini, step: play.Step, content: bytes) -> None:
        """200 with a body that no client can use."""
        gemini.answers(step)
        with GeminiClient(gemini.url) as client:
            response = client.open("generateContent", asking())
            assert (response.status, response.read()) == (200, content)

    def test_no_candidates(self, gemini: ScriptedGemini) -> None:
        """Usage and nothing else."""
        gemini.answers(play.no_candidates(), play.finished("SAFETY"))
        assert "candidates" not in answer_to(gemini.url, asking())
        assert answer_to(gemini.url, asking())["candidates"][0]["content"]["parts"] == []

    @pytest.mark.parametrize("length", [0, 10, 200])
    def test_a_cut_reply_ends_early(self, gemini: ScriptedGemini, length: int) -> None:
        """So many bytes arrive and no more; the answer is billed all the same."""
        gemini.answers(play.cut(length))
        with GeminiClient(gemini.url) as client, pytest.raises(http.client.HTTPException):
            client.open("generateContent", asking()).read()
        assert gemini.delivered.total > 0

    def test_a_connection_may_die_between_calls(self, gemini: ScriptedGemini) -> None:
        """The whole reply arrives, without a word that the connection ends after it."""
        gemini.answers(play.cut(None))
        with GeminiClient(gemini.url) as client:
            assert client.post("generateContent", asking())[0] == 200
            with pytest.raises((http.client.RemoteDisconnected, OSError)):
                client.post("generateContent", asking())
        assert gemini.count == 1

    @pytest.mark.parametrize("step", [play.drip(0.0001), play.slow_headers(0.0001), play.after(0.001)])
    def test_slow_replies_arrive_whole(self, gemini: ScriptedGemini, step: play.Step) -> None:
        """Slowness changes when, not what."""
        gemini.answers(step)
        assert said(answer_to(gemini.url, asking())).startswith("An answer that is long")

    @pytest.mark.parametrize(
        "step", [play.hang(), play.drip(60), play.slow_headers(60), play.after(Event()), play.stream("a", IDLE)]
    )
    def test_no_step_outlives_the_server(self, step: play.Step) -> None:
        """Closing ends a call that hangs, whatever it waits for; the client sees its connection end."""
        gemini = ScriptedGemini(step).start()
        with GeminiClient(gemini.url) as client, ThreadPoolExecutor(1) as pool:
            reading = pool.submit(lambda: client.open("streamGenerateContent?alt=sse", asking()).read())
            assert gemini.wait_for_calls(1)
            gemini.close()
            with pytest.raises((http.client.HTTPException, OSError)):
                reading.result()

    def test_the_gate_holds_replies_not_calls(self, gemini: ScriptedGemini) -> None:
        """Calls are counted while it is closed, and answered once it opens."""
        gemini.gate.clear()
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(answer_to, gemini.url, asking()) for _ in range(4)]
            assert gemini.wait_for_calls(4)
            assert not any(one.done() for one in asked)
            gemini.gate.set()
            assert all(one.result() for one in asked)
        assert not gemini.wait_for_calls(5, timeout=0)

    def test_a_stream_moves_when_told(self, gemini: ScriptedGemini) -> None:
        """A delta passes as soon as its event or semaphore lets it, and not before."""
        event, steps = Event(), Semaphore(0)
        gemini.answers(play.stream("a", event, "b", steps, "c", finish="MAX_TOKENS", usage="last"))
        with GeminiClient(gemini.url) as client:
            pieces = events(client.open("streamGenerateContent?alt=sse", asking()))
            assert said(next(pieces)) == "a"
            event.set()
            assert said(next(pieces)) == "b"
            assert gemini.delivered == Usage()
            steps.release()
            last = next(pieces)
        assert (said(last), last["candidates"][0]["finishReason"]) == ("c", "MAX_TOKENS")
        assert last["usageMetadata"]["totalTokenCount"] == gemini.delivered.total

    def test_a_stream_may_fail_in_the_middle(self, gemini: ScriptedGemini) -> None:
        """By an error document, or by the end of the connection."""
        gemini.answers(play.stream("a", Fault(500)), play.stream("a", CUT))
        with GeminiClient(gemini.url) as client:
            first, error = events(client.open("streamGenerateContent?alt=sse", asking()))
            assert (said(first), error["error"]["status"]) == ("a", "INTERNAL")
            broken = client.open("streamGenerateContent?alt=sse", asking())
            with pytest.raises(http.client.IncompleteRead):
                broken.read()

    def test_a_caller_who_leaves_a_stream_is_counted(self, gemini: ScriptedGemini) -> None:
        """As soon as a write fails."""
        gemini.answers(play.stream("a", *["b"] * 50_000))
        with GeminiClient(gemini.url) as client:
            response = client.open("streamGenerateContent?alt=sse", asking())
            assert said(next(events(response))) == "a"
            response.close()
        assert gemini.wait_for_departures(1)
        assert gemini.departed == 1
        assert gemini.delivered == Usage()

    def test_an_invalid_key_is_a_bad_request(self, gemini: ScriptedGemini) -> None:
        """Google answers 400 with the reason API_KEY_INVALID."""
        gemini.answers(play.invalid_key())
        with GeminiClient(gemini.url) as client:
            status, payload = client.post("generateContent", asking())
        assert (status, payload["error"]["details"][0]["reason"]) == (400, "API_KEY_INVALID")
