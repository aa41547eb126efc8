# SPDX-License-Identifier: Apache-2.0
"""JSON as this server takes it, and the part of JSON Schema that describes its requests.

    reading    UTF-8, at most MAX_DEPTH levels, no key twice in an object, finite numbers only
    schemas    type, enum, minimum, maximum, minLength, maxLength, minItems, maxItems, items, properties, required,
               additionalProperties, patternProperties, anyOf; any other keyword is for readers only

The schemas are those of the OpenAPI document, so what is said of a request and what is accepted cannot differ.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from orinkit.config import nearest
from orinkit.errors import ServiceError

MAX_DEPTH = 32
Schema = Mapping[str, Any]
_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)
_KINDS: dict[str, tuple[Any, str]] = {
    "object": (dict, "an object"),
    "array": (list, "an array"),
    "string": (str, "a text"),
    "boolean": (bool, "true or false"),
    "number": ((int, float), "a number"),
    "integer": (int, "a whole number"),
    "null": (type(None), "null"),
}


def read(body: bytes) -> Any:
    """The data of a JSON text. Raises ServiceError 400."""
    if _depth(body) > MAX_DEPTH:
        raise refusal("", f"expected at most {MAX_DEPTH} levels, found more")
    try:
        return json.loads(body.decode("utf-8"), object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)
    except (ValueError, RecursionError):
        raise refusal("", "expected JSON in UTF-8, found something else") from None


def check(data: Any, schema: Schema, where: str = "") -> None:
    """Raise ServiceError 400 unless `data` is as `schema` says; the error names the field."""
    if "anyOf" in schema:
        return _check_any(data, schema["anyOf"], where)
    kind = schema.get("type")
    if kind is not None and not _is(data, kind):
        raise refusal(where, f"expected {_KINDS[kind][1]}, found {_shown(data)}")
    if "enum" in schema and data not in schema["enum"]:
        raise refusal(where, f"expected one of {', '.join(map(str, schema['enum']))}, found {_shown(data)}")
    _check_bounds(data, schema, where)
    if kind == "object":
        _check_object(data, schema, where)
    if kind == "array" and "items" in schema and not _are_whole(data, schema["items"]):
        for index, item in enumerate(data):
            check(item, schema["items"], f"{where}[{index}]")
    return None


def refusal(where: str, message: str) -> ServiceError:
    """A request that is wrong at `where`, a path such as messages[0].role."""
    return ServiceError(f"{where or 'body'}: {message}", 400, "invalid_request", param=where or None)


def _depth(body: bytes) -> int:
    """Levels of arrays and objects, without recursion; of anything that is no JSON, some number."""
    depth = deepest = 0
    for match in _TOKENS.finditer(body):
        if match[0] in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif match[0] in b"]}":
            depth -= 1
    return deepest


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise refusal(twice[:80], "expected this key once, found it twice")
    return made


def _constant(name: str) -> float:
    raise refusal("", f"expected finite numbers, found {name}")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise refusal("", f"expected finite numbers, found {text[:40]}")
    return value


def _is(data: Any, kind: str) -> bool:
    if kind == "integer" and isinstance(data, float) and data.is_integer():
        return True
    return isinstance(data, _KINDS[kind][0]) and (kind == "boolean" or not isinstance(data, bool))


def _check_any(data: Any, choices: list[Schema], where: str) -> None:
    """The choice whose type fits speaks, so that its message is about the field that is wrong."""
    for choice in choices:
        if "type" not in choice or _is(data, choice["type"]):
            kind = choice.get("properties", {}).get("type", {}).get("enum")
            if kind is None or not isinstance(data, dict) or data.get("type") in kind:
                return check(data, choice, where)
    expected = ", ".join(dict.fromkeys(_described(choice) for choice in choices))
    raise refusal(where, f"expected {expected}, found {_shown(data)}")


def _described(choice: Schema) -> str:
    kind = choice.get("properties", {}).get("type", {}).get("enum")
    return f"an object of type {' or '.join(kind)}" if kind else str(_KINDS[choice["type"]][1])


def _are_whole(data: list[Any], schema: Schema) -> bool:
    """Whether all are whole numbers as `schema` wants them, seen at once: a prompt of token ids is long."""
    if schema.get("type") != "integer" or "enum" in schema or set(map(type, data)) != {int}:
        return False
    return bool(schema.get("minimum", -math.inf) <= min(data) and max(data) <= schema.get("maximum", math.inf))


def _check_bounds(data: Any, schema: Schema, where: str) -> None:
    if isinstance(data, (int, float)) and not isinstance(data, bool):
        low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
        if not low <= data <= high:
            raise refusal(where, f"expected {low} to {high}, found {_shown(data)}")
    if isinstance(data, (str, list)):
        word, unit = ("Length", "characters") if isinstance(data, str) else ("Items", "entries")
        low, high = schema.get(f"min{word}", 0), schema.get(f"max{word}", math.inf)
        if not low <= len(data) <= high:
            raise refusal(where, f"expected {low} to {high} {unit}, found {len(data)}")


def _check_object(data: dict[str, Any], schema: Schema, where: str) -> None:
    properties, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    prefix = f"{where}." if where else ""
    for name, value in data.items():
        described = properties.get(name) or next((s for p, s in patterns.items() if re.search(p, name)), None)
        if described is not None:
            check(value, described, f"{prefix}{name[:80]}")
        elif schema.get("additionalProperties") is False:
            hint = f"; {nearest(name[:80], properties)}" if properties else ""
            raise refusal(f"{prefix}{name[:80]}", f"unknown field{hint}")
    for name in schema.get("required", ()):
        if name not in data:
            raise refusal(f"{prefix}{name}", "expected this field, found none")


def _shown(data: Any) -> str:
    if isinstance(data, (dict, list)):
        return "an object" if isinstance(data, dict) else "an array"
    if isinstance(data, int) and data.bit_length() > 64:
        return "a number of more than 64 bits"
    return json.dumps(data)[:40]
