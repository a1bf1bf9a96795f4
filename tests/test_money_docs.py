"""docs/money.md says what the code does."""

from __future__ import annotations

import re

from mtllm.billing.export import COLUMNS
from mtllm.ledger.records import ABANDONED, HIT, OK, OPEN, UNSETTLED
from mtllm.project import PROJECT

DOCUMENT = (PROJECT / "docs" / "money.md").read_text(encoding="utf-8")


def test_the_columns_of_the_export_are_documented_in_their_order() -> None:
    """Name and meaning of each, nothing else."""
    [table] = re.findall(r"<!-- columns -->\n(.*?)<!-- end -->", DOCUMENT, re.DOTALL)
    documented = re.findall(r"^\| `(\w+)` \| (.+) \|$", table, re.MULTILINE)
    assert documented == [(column.name, column.meaning) for column in COLUMNS]


def test_every_status_of_the_ledger_is_explained() -> None:
    """In the table of statuses; error codes are explained as one."""
    explained = set(re.findall(r"^\| `(\w+)` \|", DOCUMENT, re.MULTILINE))
    assert {OK, HIT, ABANDONED, OPEN, UNSETTLED} <= explained


def test_links_lead_somewhere() -> None:
    """Every heading that is linked to is there."""
    anchors = {
        re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in re.findall(r"^#+ (.+)$", DOCUMENT, re.M)
    }
    assert set(re.findall(r"\]\(#([\w-]+)\)", DOCUMENT)) <= anchors
