# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from jsonschema import Draft202012Validator

from orinkit import config
from orinkit.errors import ConfigError
from orinkit.recipe import Quantise, Recipe
from orinkit_export import schema

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests/data"
SHIPPED = {
    "recipe": sorted(ROOT.glob("recipes/*.yaml")),
    "target": sorted(ROOT.glob("targets/*.yaml")),
    "board": sorted(ROOT.glob("targets/boards/*.yaml")),
    "stack": sorted(ROOT.glob("targets/stacks/*.yaml")),
}
PREFIXES = {
    "recipe": "invalid_recipe_",
    "target": "invalid_target_file_",
    "board": "invalid_target_board_",
    "stack": "invalid_target_stack_",
}


def is_plain(path: Path) -> bool:
    """Whether the file is plain YAML; where not, there is nothing that a schema could see."""
    try:
        config.load_yaml(path)
    except ConfigError:
        return False
    return True


PLAIN = [
    (kind, path) for kind, prefix in PREFIXES.items() for path in sorted(DATA.glob(f"{prefix}*.yaml")) if is_plain(path)
]


@dataclass(frozen=True)
class Part:
    """A part."""

    size: int


@dataclass(frozen=True)
class Whole:
    """One field of every type that the reader understands."""

    flag: bool
    """Up
    or down."""
    ratio: float
    count: int | None
    kind: Literal["a", 2] = "a"
    names: tuple[str, ...] = ("x",)
    """Not nameless."""
    table: dict[str, Part] = field(default_factory=dict)
    part: Part | None = None


def is_valid(data: Any, cls: type) -> bool:
    return Draft202012Validator(schema.schema(cls)).is_valid(data)


@pytest.mark.parametrize("kind", schema.FILES)
def test_the_schema_is_one(kind: str) -> None:
    Draft202012Validator.check_schema(schema.schema(schema.FILES[kind]))


@pytest.mark.parametrize(("kind", "path"), [(kind, path) for kind, paths in SHIPPED.items() for path in paths])
def test_a_shipped_file_is_valid(kind: str, path: Path) -> None:
    Draft202012Validator(schema.schema(schema.FILES[kind])).validate(config.load_yaml(path))


@pytest.mark.parametrize(("kind", "path"), PLAIN, ids=lambda value: getattr(value, "stem", value))
def test_a_file_of_the_wrong_shape_is_invalid(kind: str, path: Path) -> None:
    """Files named rule have the right shape: their ranges, forms of text and pairs of keys are checked on reading."""
    assert is_valid(config.load_yaml(path), schema.FILES[kind]) == ("_rule_" in path.stem)


def test_a_schema_in_full() -> None:
    part = {
        "description": "A part.",
        "type": "object",
        "properties": {"size": {"type": "integer"}},
        "required": ["size"],
        "additionalProperties": False,
    }
    assert schema.schema(Whole) == {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Whole",
        "description": "One field of every type that the reader understands.",
        "type": "object",
        "properties": {
            "flag": {"type": "boolean", "description": "Up or down."},
            "ratio": {"type": "number"},
            "count": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            "kind": {"enum": ["a", 2], "default": "a"},
            "names": {"type": "array", "items": {"type": "string"}, "description": "Not nameless.", "default": ["x"]},
            "table": {"type": "object", "additionalProperties": part, "default": {}},
            "part": {"anyOf": [part, {"type": "null"}]},
        },
        "required": ["flag", "ratio", "count"],
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"flag": 1},
        {"ratio": 2},
        {"ratio": "2"},
        {"count": None},
        {"count": 1.5},
        {"kind": 2},
        {"kind": "2"},
        {"names": "x"},
        {"names": [1]},
        {"table": {"a": {"size": 1}}},
        {"table": {"a": {}}},
        {"part": {"size": 1, "weight": 1}},
        {"part": None},
        {"extra": 1},
    ],
)
def test_schema_and_reader_agree(change: dict[str, Any]) -> None:
    data = {"flag": True, "ratio": 0.5, "count": 3, **change}
    try:
        config.parse(data, Whole, "here")
    except ConfigError:
        assert not is_valid(data, Whole)
    else:
        assert is_valid(data, Whole)


def test_descriptions_and_defaults_come_from_the_dataclass() -> None:
    quantise = schema.schema(Recipe)["properties"]["quantise"]
    assert quantise["description"] == Quantise.__doc__
    assert quantise["default"] == config.dump(Quantise())
    assert quantise["properties"]["embedding"]["description"].startswith("With a tied head of the same format")


def test_write(tmp_path: Path) -> None:
    paths = schema.write(tmp_path / "new/folder")
    assert [path.name for path in paths] == [f"{kind}.schema.json" for kind in ("recipe", "target", "board", "stack")]
    assert sorted((tmp_path / "new/folder").iterdir()) == sorted(paths)
    for path, cls in zip(paths, schema.FILES.values(), strict=True):
        assert json.loads(path.read_text(encoding="utf-8")) == schema.schema(cls)
