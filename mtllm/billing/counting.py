"""Estimates of tokens by a process of its own, which takes the vocabulary's memory with it when it ends.

estimate_apart                        texts -> their estimates
python -m mtllm.billing.counting      that process: JSON texts on standard input, JSON numbers on standard output
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from mtllm.billing.drift import CountingFailedError
from mtllm.billing.tokens import TokenCounter

_ROOT = Path(__file__).resolve().parents[2]
_SECONDS = 30.0
_NICENESS = 10


def estimate_apart(texts: Sequence[str]) -> Sequence[int]:
    """Return the estimate of each text, in about half a second. Raises CountingFailedError."""
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    try:
        run = subprocess.run(  # noqa: S603 - our own module, by our own interpreter
            [sys.executable, "-m", __name__],
            input=json.dumps(texts).encode("ascii"),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
            timeout=_SECONDS,
            start_new_session=True,  # a Ctrl-C at the terminal is the service's
            check=False,
        )
        counts = json.loads(run.stdout) if run.returncode == 0 else None
    except (OSError, ValueError, subprocess.TimeoutExpired) as problem:
        raise CountingFailedError(f"the process that counts tokens failed ({type(problem).__name__})") from None
    if counts is None or len(counts) != len(texts):
        raise CountingFailedError(f"the process that counts tokens ended with status {run.returncode}")
    return list(map(int, counts))


def main() -> int:
    """Answer the texts on standard input, after everybody else's work."""
    with suppress(AttributeError, OSError):  # Windows has no such call, and deploy's unit forbids it
        os.nice(_NICENESS)
    counter = TokenCounter()
    json.dump([counter.estimate_tokens(text) for text in json.load(sys.stdin)], sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
