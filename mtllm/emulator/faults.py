"""Faults on demand: how they are asked for, and which calls they meet.

FaultOrder     one fault with its argument
read_order     "429:7" -> FaultOrder
find_order     a prompt -> the order in it, such as "[[emulate: 429:7]]"
FaultShare     a fault that meets a share of all calls
read_share     "429@10%" -> FaultShare
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mtllm.emulator.fault_kinds import FAULTS, FaultKind

_MARK = "[[emulate:"
_ORDER = re.compile(r"\[\[emulate:\s*(?P<order>[^\]]*)\]\]")
_TIMES = re.compile(r"(?P<order>[^*]*)\*\s*(?P<times>[1-9]\d{0,5})")
_SHARE = re.compile(r"(?P<order>[^@]+)@(?P<percent>\d+(?:\.\d+)?)%")


@dataclass(frozen=True, slots=True)
class FaultOrder:
    """One fault as it was ordered."""

    kind: FaultKind
    argument: str = ""
    times: int | None = None
    """How often the same call meets it before it is answered; None for always."""


@dataclass(frozen=True, slots=True)
class FaultShare:
    """A fault that meets a share of all calls."""

    order: FaultOrder
    share: float
    """From 0 to 1."""


def read_order(text: str) -> FaultOrder:
    """Return the order in "NAME", "NAME:ARGUMENT" or "NAME*TIMES". Raises ValueError, with the names that there are."""
    counted = _TIMES.fullmatch(text.strip())
    name, colon, argument = (counted["order"] if counted else text).strip().partition(":")
    kind = FAULTS.get(name.strip())
    if kind is None:
        raise ValueError(f"{name.strip()!r} is no fault; there are {', '.join(FAULTS)}")
    argument = argument.strip() if colon else kind.default
    if not re.fullmatch(kind.takes, argument):
        raise ValueError(f"{argument!r} does not fit the fault {kind.name}; {kind.does}")
    return FaultOrder(kind, argument, int(counted["times"]) if counted else None)


def find_order(prompt: str) -> FaultOrder | None:
    """Return the order that stands in a prompt as [[emulate: ORDER]]; None when none does. Raises ValueError."""
    found = _ORDER.search(prompt) if _MARK in prompt else None
    return read_order(found["order"]) if found else None


def read_share(text: str) -> FaultShare:
    """Return the share in "ORDER@PERCENT%", such as "429@10%". Raises ValueError."""
    found = _SHARE.fullmatch(text.strip())
    if found is None or float(found["percent"]) > 100:
        raise ValueError(f"{text!r} is not of the form FAULT@PERCENT%, such as 429@10%")
    return FaultShare(read_order(found["order"]), float(found["percent"]) / 100)
