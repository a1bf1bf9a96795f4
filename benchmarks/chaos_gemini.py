"""A Gemini on a very bad day: answers at random, well or in one of two dozen wrong ways. The other side of the soak.

`python -m benchmarks.chaos_gemini --port 9100 --seed 1 --calls calls.txt` writes the prompt of each call to `calls.txt`
before it does anything else, so that the count of calls outlives a `kill -9`.
"""

from __future__ import annotations

import argparse
import os
from contextlib import suppress
from random import Random
from threading import Lock

from mtllm.emulator import EmulatedReply, GeminiCall, canned
from tests.support.scripted_gemini import (
    CUT,
    IDLE,
    PER_MINUTE,
    Fault,
    ScriptedGemini,
    Step,
    after,
    blocked_prompt,
    cut,
    drip,
    empty_body,
    empty_object,
    finished,
    garbage,
    hang,
    no_candidates,
    no_usage,
    offline,
    slow_headers,
    status,
    stream,
    text,
    wrong_content_type,
)

WELL: tuple[Step, ...] = (
    offline(),
    text("A short answer."),
    text("HTTP 429 rate limit exceeded, 503, retry in 45s"),
    text("A thoughtful answer. " * 40, thoughts=300),
    after(0.05),
    no_usage("An answer that nobody counted."),
    finished("MAX_TOKENS", "Half an ans"),
)
WELL_STREAMED: tuple[Step, ...] = (
    *WELL,
    stream("one ", "two ", "three"),
    stream(*["word after word "] * 30, usage="last"),
    stream("slow ", 0.1, "and ", 0.1, "steady", usage="never"),
)
BADLY: tuple[Step, ...] = (
    *(status(code) for code in (400, 401, 404, 500, 502, 503, 504)),
    status(429, retry_delay="0.05s", quota_id=PER_MINUTE),
    status(503, retry_delay="30s"),
    blocked_prompt(),
    finished("SAFETY", "Half an"),
    finished("A_NEW_REASON"),
    no_candidates(),
    empty_object(),
    empty_body(),
    garbage(),
    wrong_content_type(),
    cut(0),
    cut(150),
    cut(None),
    hang(),
    drip(0.02),
    slow_headers(0.02),
)
BADLY_STREAMED: tuple[Step, ...] = (
    *BADLY,
    stream("words ", Fault(503)),
    stream("words ", CUT),
    stream("words ", IDLE),
    stream(*[beat for _ in range(200) for beat in ("on and on ", 0.05)]),
)
SHARE_OF_GOOD_DAYS = 0.85


def misbehaving(seed: int, calls: int) -> Step:
    """A step that picks another one for each call; `calls` is the descriptor that the prompts are written to."""
    random, lock = Random(seed), Lock()

    def step(gemini: ScriptedGemini, call: GeminiCall) -> EmulatedReply:
        if not call.generates:
            return canned(call)
        os.write(calls, f"{call.prompt}\n".encode())
        with lock:
            well = random.random() < SHARE_OF_GOOD_DAYS
            choices = (WELL_STREAMED if well else BADLY_STREAMED) if call.streams else (WELL if well else BADLY)
            chosen = random.choice(choices)
        return chosen(gemini, call)

    return step


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--calls", required=True)
    options = parser.parse_args()
    calls = os.open(options.calls, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with (
        ScriptedGemini(default=misbehaving(options.seed, calls), port=options.port) as gemini,
        suppress(KeyboardInterrupt),
    ):
        gemini.closing.wait()


if __name__ == "__main__":
    main()
