"""A local server that speaks Gemini's REST protocol, with canned answers that say so; it stands alone.

    wire                        HTTP: requests in, responses out
    bodies, calls               what one request asks of Gemini
    replies                     Google's documents and the bytes that carry them
    labels, schemas, answers    what the offline model says
    models                      closed, retired, swapped, overloaded and thinking models
    fault_kinds, faults         failures, and how they are ordered
    offline                     all of it as one function from call to reply
    local_model, local_answers  a small language model in the place of canned answers
    server                      that function behind a port
    command                     `python -m mtllm.emulator`

The shapes follow https://ai.google.dev/api/generate-content. docs/emulator.md tells how to use it.
"""

from mtllm.emulator.answers import CannedAnswer, compose
from mtllm.emulator.bodies import ThinkingWish
from mtllm.emulator.calls import GeminiCall
from mtllm.emulator.fault_kinds import FAULTS
from mtllm.emulator.faults import FaultShare, find_order, read_order, read_share
from mtllm.emulator.models import ModelState, PlayedModel, ThinkingKind, parse_model, refuse_model
from mtllm.emulator.offline import OFFLINE_MODEL, OfflineGemini, canned
from mtllm.emulator.replies import (
    PER_DAY,
    PER_MINUTE,
    STATUS_NAMES,
    EmulatedReply,
    Pause,
    Piece,
    Reset,
    Usage,
    answered,
    blocked_prompt,
    candidate,
    error_info,
    failed,
    failure,
    json_bytes,
    json_reply,
    prompt_tokens,
    quota_failure,
    retry_info,
    token_count,
)
from mtllm.emulator.server import Emulator
from mtllm.emulator.wire import http_response

__all__ = [
    "Emulator", "OfflineGemini", "canned", "OFFLINE_MODEL",
    "GeminiCall", "ThinkingWish", "CannedAnswer", "compose",
    "PlayedModel", "ModelState", "ThinkingKind", "parse_model", "refuse_model",
    "FAULTS", "FaultShare", "read_share", "read_order", "find_order",
    "EmulatedReply", "Piece", "Pause", "Reset", "Usage",
    "answered", "candidate", "blocked_prompt", "failed", "failure", "json_reply", "json_bytes", "http_response",
    "retry_info", "quota_failure", "error_info", "STATUS_NAMES", "PER_DAY", "PER_MINUTE",
    "prompt_tokens", "token_count",
]  # fmt: skip
