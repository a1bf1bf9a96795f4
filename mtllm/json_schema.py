"""JSON answers: is a schema one, and does an answer fit it? (JSON Schema, draft 2020-12)

jsonschema is loaded when the first schema comes. `pattern` and `patternProperties` are left to Gemini: a pattern may
take Python's matcher for ever, and whoever sends the schema would choose it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

MAX_DEPTH = 64
"""Levels of a schema; a deeper one helps no model, and could take the checker's stack."""

MOST_REFERENCES = 5000
"""References that are followed for one answer: half a second; an answer of 8,192 tokens has no more parts."""


def find_schema_problem(schema: object) -> str:
    """Return what is wrong with a schema, in words that quote nothing of it; empty where it is one."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    if not isinstance(schema, dict):
        return "must be an object"
    if _depth(schema) > MAX_DEPTH:
        return f"must have at most {MAX_DEPTH} levels"
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as problem:
        place = "/".join(map(str, problem.absolute_path))
        return f"is no JSON schema at {place[:100] or 'its top'}"
    return ""


def find_misfit(text: str, schema: str) -> str:
    """Return why a text is no JSON that fits a schema (its JSON; empty for any JSON at all), empty where it fits."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return "it is no JSON"
    if not schema:
        return ""
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    checker = _make_checker(MOST_REFERENCES)
    validator = checker(_without_patterns(json.loads(schema)), registry=Registry())  # asks no other place
    try:
        fits = validator.is_valid(value)
    except (Unresolvable, RecursionError, TooManyReferencesError):
        return "its schema cannot be followed"
    return "" if fits else "it does not fit the schema"


class TooManyReferencesError(Exception):
    """Following the references of a schema would take too long."""


def _make_checker(most: int) -> Any:
    """Return a validator that follows so many references: chained ones multiply in a schema of a few lines."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    follow, left = Draft202012Validator.VALIDATORS["$ref"], most

    def follow_counted(validator: Any, reference: Any, instance: Any, schema: Any) -> Iterator[Any]:
        nonlocal left
        left -= 1
        if left < 0:
            raise TooManyReferencesError
        yield from follow(validator, reference, instance, schema) or ()

    return extend(Draft202012Validator, {"$ref": follow_counted})  # type: ignore[no-untyped-call]  # stubs say so little


def _refuse_constant(name: str) -> None:
    raise ValueError(name)  # NaN and the infinities are no JSON (RFC 8259, section 6)


def _depth(value: object) -> int:
    levels, todo = 0, [value]
    while todo and levels <= MAX_DEPTH:
        levels += 1
        inner: list[object] = []
        for one in todo:
            if isinstance(one, dict):
                inner += one.values()
            elif isinstance(one, list):
                inner += one
        todo = inner
    return levels


def _without_patterns(schema: Any) -> Any:
    """Return a schema without what a regular expression decides; names of properties are no keywords."""
    if isinstance(schema, list):
        return [_without_patterns(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    kept: dict[str, Any] = {}
    for word, part in schema.items():
        if word in ("pattern", "patternProperties", "$schema", "$dynamicRef"):  # $schema would choose another checker
            continue
        named = word in ("properties", "$defs", "definitions", "dependentSchemas") and isinstance(part, dict)
        if named:
            kept[word] = {name: _without_patterns(inner) for name, inner in part.items()}
        elif word in ("enum", "const", "default", "examples", "required"):
            kept[word] = part
        else:
            kept[word] = _without_patterns(part)
    if "patternProperties" in schema and kept.get("additionalProperties") is False:
        del kept["additionalProperties"]  # what the patterns allow cannot be told apart any more
    return kept
