"""A value that fits a JSON schema, and the schema in the standard dialect.

    fit                schema -> value
    standard_schema    schema -> the same as JSON Schema has it

Both dialects of a request are read: Gemini's (`STRING`, `nullable`, numbers as strings of digits) and the standard one
(`$defs`, `$ref`, `anyOf` with null, `const`, lists of types). Not looked at are `pattern`, `not`, `if`, `contains`,
`uniqueItems`, `patternProperties` and `dependentRequired`: a value may break these, and a list of more than a hundred.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mtllm.emulator.labels import choose_label

_SAID = "canned answer"
_OPTIONAL_DEPTH = 6
"""Below so many levels only what must be there is made: a schema that contains itself comes to an end."""
_MOST_LEVELS = 60
_MOST_VALUES = 10_000
_MOST_ITEMS = 100
_LONGEST_STRING = 100_000
_NUMBERED_KINDS = {1: "string", 2: "number", 3: "integer", 4: "boolean", 5: "array", 6: "object", 7: "null"}
"""Type as an enum of Google's protocol buffers; google-generativeai sends the number."""
_FORMATS = {
    "date-time": "2000-01-01T00:00:00Z",
    "date": "2000-01-01",
    "time": "00:00:00Z",
    "duration": "P1D",
    "email": "canned@example.com",
    "hostname": "example.com",
    "ipv4": "127.0.0.1",
    "ipv6": "::1",
    "uri": "https://example.com/canned",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def fit(schema: Any, text: str) -> Any:
    """Return a value that fits `schema`, the same for the same arguments; enums are chosen by `text`.

    Strings say that they are canned where the schema leaves them free. A schema that nothing fits, or only something
    without end, gets null there.
    """
    return _Fitting(schema, text).make(schema, 0)


def standard_schema(schema: Any) -> Any:
    """Return a schema of Gemini's dialect, or a standard one, in the standard dialect.

    Gemini gives no other properties than those that are named; that is said where the schema leaves it open.
    """
    if isinstance(schema, list):
        return list(map(standard_schema, schema))
    if not isinstance(schema, dict):
        return schema
    standard = {name: _as_number(name, standard_schema(value)) for name, value in schema.items() if name != "nullable"}
    kind = schema.get("type")
    if isinstance(kind, str | int):
        standard["type"] = _NUMBERED_KINDS.get(kind, "string") if isinstance(kind, int) else kind.lower()
    if isinstance(standard.get("properties"), dict):
        standard.setdefault("additionalProperties", False)
    return {"anyOf": [standard, {"type": "null"}]} if schema.get("nullable") is True else standard


def _as_number(name: str, value: Any) -> Any:
    """Protocol buffers write bounds, integers of 64 bits, as strings."""
    return int(value) if name.startswith(("min", "max")) and isinstance(value, str) and value.isdecimal() else value


class _Fitting:
    """The making of one value; `_left` bounds how many values it is made of."""

    def __init__(self, root: Any, text: str) -> None:
        self._root = root
        self._text = text
        self._left = _MOST_VALUES

    def make(self, schema: Any, depth: int) -> Any:
        self._left -= 1
        if self._left < 0 or depth > _MOST_LEVELS:
            return None
        schema = self._resolve(schema)
        if "const" in schema:
            return schema["const"]
        if isinstance(schema.get("enum"), list) and schema["enum"]:
            return self._choose(schema["enum"])
        alternatives = _field(schema, "anyOf", list) or _field(schema, "oneOf", list)
        if alternatives:
            return self.make(self._pick(alternatives, depth), depth + 1)
        return self._make_typed(schema, depth)

    def _make_typed(self, schema: Mapping[str, Any], depth: int) -> Any:
        kind = _kind(schema)
        if kind == "object":
            return self._make_object(schema, depth)
        if kind == "array":
            return self._make_array(schema, depth)
        if kind in ("integer", "number"):
            return _make_number(schema, whole=kind == "integer")
        if kind == "boolean":
            return True
        return None if kind == "null" else _make_string(schema)

    def _resolve(self, schema: Any, level: int = 0) -> Mapping[str, Any]:
        """The schema with its `$ref` followed and its `allOf` merged."""
        for _ in range(_MOST_LEVELS):
            if not isinstance(schema, dict) or level > _MOST_LEVELS:
                return {}
            reference = schema.get("$ref", schema.get("ref"))
            if isinstance(reference, str):
                beside = {name: value for name, value in schema.items() if name not in ("$ref", "ref")}
                schema = {**self._find(reference), **beside}
            elif isinstance(schema.get("allOf"), list):
                schema = self._merge(schema, level + 1)
            else:
                return schema
        return {}

    def _find(self, reference: str) -> Mapping[str, Any]:
        found = self._root
        for step in reference.lstrip("#").strip("/").split("/") if reference.strip("#/") else ():
            step = step.replace("~1", "/").replace("~0", "~")
            found = found.get(step) if isinstance(found, dict) else None
        return found if isinstance(found, dict) else {}

    def _merge(self, schema: Mapping[str, Any], level: int) -> dict[str, Any]:
        merged = {name: value for name, value in schema.items() if name != "allOf"}
        for part in schema["allOf"][:100]:
            resolved = self._resolve(part, level) if self._left > 0 else {}
            self._left -= 1
            properties = {**_field(merged, "properties", dict), **_field(resolved, "properties", dict)}
            required = [*_field(merged, "required", list), *_field(resolved, "required", list)]
            merged = {**resolved, **merged, "properties": properties, "required": required}
        return merged if merged.get("properties") else {name: merged[name] for name in merged if name != "properties"}

    def _choose(self, values: Sequence[Any]) -> Any:
        labels = [value for value in values if isinstance(value, str)]
        return choose_label(self._text, labels) if labels else values[0]

    def _pick(self, alternatives: Sequence[Any], depth: int) -> Any:
        """The first alternative that is not null; null where the value must come to an end."""
        nulls = [one for one in alternatives if _kind(self._resolve(one)) == "null"]
        others = [one for one in alternatives if one not in nulls]
        return nulls[0] if nulls and (depth > _OPTIONAL_DEPTH or not others) else others[0]

    def _make_object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        properties = _field(schema, "properties", dict)
        required = [name for name in _field(schema, "required", list) if isinstance(name, str)]
        order = _field(schema, "propertyOrdering", list) or _field(schema, "property_ordering", list)
        names = [name for name in order if isinstance(name, str) and name in properties]
        names += [name for name in properties if name not in names]
        if depth >= _OPTIONAL_DEPTH:
            names = [name for name in names if name in required]
        more = schema.get("additionalProperties", schema.get("additional_properties"))
        made = {name: self.make(properties[name], depth + 1) for name in names[:_MOST_ITEMS]}
        made |= {name: self.make(more, depth + 1) for name in required if name not in made}
        wanted = _whole(
            schema, "minProperties", 1 if isinstance(more, dict) and not made and depth < _OPTIONAL_DEPTH else 0
        )
        for number in range(1, 1 + min(wanted - len(made), _MOST_ITEMS)):
            made[f"canned{number}"] = self.make(more, depth + 1)
        return made

    def _make_array(self, schema: Mapping[str, Any], depth: int) -> list[Any]:
        first = _field(schema, "prefixItems", list) or _field(schema, "prefix_items", list)
        items = schema.get("items")
        least = _whole(schema, "minItems", 0)
        usual = len(first) or (1 if depth < _OPTIONAL_DEPTH else 0)
        count = min(max(least, usual), _whole(schema, "maxItems", _MOST_ITEMS), _MOST_ITEMS)
        return [self.make(first[place] if place < len(first) else items, depth + 1) for place in range(count)]


def _field(schema: Mapping[str, Any], name: str, kind: type) -> Any:
    """A field of the kind that it should have, else an empty one."""
    value = schema.get(name, schema.get("any_of") if name == "anyOf" else None)
    return value if isinstance(value, kind) else kind()


def _kind(schema: Mapping[str, Any]) -> str:
    kinds = schema.get("type")
    kinds = _NUMBERED_KINDS.get(kinds, kinds) if isinstance(kinds, int) else kinds
    names = [str(kind).lower() for kind in (kinds if isinstance(kinds, list) else [kinds]) if kind is not None]
    wanted = next((name for name in names if name != "null"), names[0] if names else "")
    if wanted and wanted != "type_unspecified":
        return wanted
    if "properties" in schema or "additionalProperties" in schema:
        return "object"
    return "array" if "items" in schema or "prefixItems" in schema else "string"


def _limit(schema: Mapping[str, Any], name: str) -> float | None:
    """A bound; Gemini's dialect writes whole numbers as strings of digits, and some say it in snake_case."""
    value = schema.get(name, schema.get("".join(f"_{c.lower()}" if c.isupper() else c for c in name)))
    try:
        number = None if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if number is not None and math.isfinite(number) else None


def _whole(schema: Mapping[str, Any], name: str, default: int) -> int:
    value = _limit(schema, name)
    return default if value is None or value < 0 else int(value)


def _make_number(schema: Mapping[str, Any], *, whole: bool) -> int | float:
    low, high = _bound(schema, "minimum", "exclusiveMinimum"), _bound(schema, "maximum", "exclusiveMaximum")
    step = _limit(schema, "multipleOf")
    if whole or step:
        return _make_multiple(low, high, step if step and step > 0 else 1.0)
    number = 1.0
    if low[0] is not None and (number < low[0] or (low[1] and number == low[0])):
        number = low[0] + (_half_gap(low[0], high[0]) if low[1] else 0.0)
    if high[0] is not None and (number > high[0] or (high[1] and number == high[0])):
        number = high[0] - (_half_gap(low[0], high[0]) if high[1] else 0.0)
    return number


_Bound = tuple[float | None, bool]
"""A bound, None for none, and whether it is itself excluded."""


def _bound(schema: Mapping[str, Any], name: str, exclusive: str) -> _Bound:
    value, strict = _limit(schema, name), schema.get(exclusive)
    if strict is True:
        return value, True
    other = _limit(schema, exclusive)
    if other is None:
        return value, False
    if value is None:
        return other, True
    stricter = other >= value if name == "minimum" else other <= value
    return (other, True) if stricter else (value, False)


def _half_gap(low: float | None, high: float | None) -> float:
    return (high - low) / 2 if low is not None and high is not None else 1.0


def _make_multiple(low: _Bound, high: _Bound, step: float) -> int | float:
    factor = math.ceil(1 / step)
    if low[0] is not None:
        least = math.ceil(low[0] / step)
        factor = max(factor, least + (low[1] and least * step == low[0]))
    if high[0] is not None:
        most = math.floor(high[0] / step)
        factor = min(factor, most - (high[1] and most * step == high[0]))
    number = factor * step
    return int(number) if number == int(number) else number


def _make_string(schema: Mapping[str, Any]) -> str:
    text = _FORMATS.get(str(schema.get("format", "")), _SAID)
    least = min(_whole(schema, "minLength", 0), _LONGEST_STRING)
    text += " " * (0 < len(text) < least) + "." * (least - len(text) - 1)
    return text[: _whole(schema, "maxLength", _LONGEST_STRING)]
