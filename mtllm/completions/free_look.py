"""Free looks: is each model of the chain served to this key? countTokens tells, and costs nothing.

`models.get` answers 200 for closed models, so it proves nothing; countTokens answers 404 for them
(https://discuss.ai.google.dev/t/188394).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

from mtllm.completions.chain import ModelChain
from mtllm.completions.ports import TokenCounting
from mtllm.domain.completion import Instruction
from mtllm.domain.errors import UpstreamFailure

EVERY_SECONDS = 600.0
LOOK_SECONDS = 10.0
"""How long one look may take."""
WORD = Instruction("word", None, 1)


class FreeLook:
    """Looks at every model of the chain when it starts and then every ten minutes, in a thread of its own."""

    def __init__(
        self,
        chain: ModelChain,
        gemini: TokenCounting | None,
        *,
        every: float = EVERY_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.looked = threading.Event()
        """Set once every model was looked at."""
        self._chain = chain
        self._gemini = gemini
        self._every = every
        self._monotonic = monotonic
        self._closing = threading.Event()

    def start(self, _threads: int = 0) -> None:
        """Begin; do nothing without a key."""
        if self._gemini is not None:
            threading.Thread(target=self._run, name="model-look", daemon=True).start()

    def close(self) -> None:
        """Look no more; a look under way ends with the client's connections."""
        self._closing.set()

    def _run(self) -> None:
        while not self._closing.is_set():
            for model in self._chain.models:
                with contextlib.suppress(Exception):  # what it means is noted; a defect is told at the next real call
                    self.look_at(model)
            self.looked.set()
            self._closing.wait(self._every)

    def look_at(self, model: str) -> None:
        """Look at one model and note what that tells. Raises the UpstreamFailure that it met."""
        assert self._gemini is not None  # noqa: S101  # without a key nobody looks
        try:
            self._gemini.count_tokens(model, WORD, deadline=self._monotonic() + LOOK_SECONDS)
        except UpstreamFailure as failure:
            self._chain.note_refusal(model, failure)
            raise
        self._chain.note_looked(model)
