"""Each sign of an attack, held by the two examples that stand beside it."""

from __future__ import annotations

import re

import pytest

from mtllm.security.rules import AGENT_RULES, HEADER_RULE, PATH_RULES, QUERY_RULES, Rule, Sign

RULES = dict.fromkeys((*PATH_RULES, *QUERY_RULES, HEADER_RULE, *AGENT_RULES))


EXAMPLES = [pytest.param(rule, sign, id=f"{rule.kind}: {sign.caught}") for rule in RULES for sign in rule.signs]
"""Each rule with each of its signs."""


@pytest.mark.parametrize(("rule", "sign"), EXAMPLES)
def test_a_sign_finds_what_has_it(rule: Rule, sign: Sign) -> None:
    """The rule sees the attack, by this sign, and does not take it for a sentence."""
    assert re.search(sign.pattern, sign.caught, re.IGNORECASE)
    assert rule.find(sign.caught)
    assert rule.spares is None or not rule.spares(sign.caught)


@pytest.mark.parametrize(("rule", "sign"), EXAMPLES)
def test_a_sign_spares_what_only_looks_like_it(rule: Rule, sign: Sign) -> None:
    """Neither this sign nor the others of the rule see an attack in it."""
    assert not re.search(sign.pattern, sign.spared, re.IGNORECASE)
    assert not rule.find(sign.spared)
