# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from orinkit.runtime.request import MAX_STOPS
from orinkit.serve import fields


@pytest.mark.parametrize("schema", [fields.CHAT, fields.COMPLETION])
def test_the_descriptions_are_json_schemas(schema: Any) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)


def test_every_object_that_a_client_writes_refuses_unknown_names() -> None:
    def objects(schema: Any) -> list[Any]:
        inner = [item for value in schema.values() for item in (value if isinstance(value, list) else [value])]
        own = [schema] if schema.get("type") == "object" and schema.get("properties") else []
        return own + [found for item in inner if isinstance(item, dict) for found in objects(item)]

    found = objects(fields.CHAT) + objects(fields.COMPLETION)
    assert len(found) > 10
    assert all(schema["additionalProperties"] is False for schema in found)


def test_the_bounds_are_those_of_the_runtime() -> None:
    assert fields.CHAT["properties"]["stop"]["anyOf"][1]["maxItems"] == MAX_STOPS
    assert fields.CHAT["properties"]["n"]["maximum"] == 4
