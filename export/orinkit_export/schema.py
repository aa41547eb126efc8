# SPDX-License-Identifier: Apache-2.0
"""JSON Schema of the YAML files, for editors. All of it is derived from the dataclasses that read the files.

The types, the defaults and which keys are needed come from the fields, the descriptions from the class docstrings and
from the string literal below a field. A schema knows shapes only: what a `validate` method promises (ranges, names,
keys that exclude each other) is checked when the file is read.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import textwrap
import types
import typing
from pathlib import Path
from typing import Any, Literal, Union

from orinkit import config
from orinkit.recipe import Recipe
from orinkit.target import Board, Stack, TargetFile

DIALECT = "https://json-schema.org/draft/2020-12/schema"
FILES: dict[str, type] = {"recipe": Recipe, "target": TargetFile, "board": Board, "stack": Stack}
"""The kinds of YAML file and the dataclass that reads each."""

_SCALARS = {bool: "boolean", int: "integer", float: "number", str: "string", types.NoneType: "null"}


def write(folder: Path) -> list[Path]:
    """Write `<kind>.schema.json` of every kind in FILES into `folder`, which is made if need be; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for kind, cls in FILES.items():
        path = folder / f"{kind}.schema.json"
        path.write_text(json.dumps(schema(cls), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        paths.append(path)
    return paths


def schema(cls: type) -> dict[str, Any]:
    """The JSON Schema, draft 2020-12, of files that `config.read(path, cls)` reads."""
    return {"$schema": DIALECT, "title": cls.__name__, **_object(cls)}


def _object(cls: type) -> dict[str, Any]:
    hints, told = typing.get_type_hints(cls), _descriptions(cls)
    fields = dataclasses.fields(cls)
    return {
        "description": inspect.getdoc(cls),
        "type": "object",
        "properties": {
            field.name: {**_type(hints[field.name]), **told.get(field.name, {}), **_default(field)} for field in fields
        },
        "required": [field.name for field in fields if _is_needed(field)],
        "additionalProperties": False,
    }


def _type(kind: Any) -> dict[str, Any]:
    """The cases are those of `orinkit.config`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _object(typing.cast(type, kind))
    if origin in (Union, types.UnionType):
        return {"anyOf": [_type(arm) for arm in arguments]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        return {"type": "array", "items": _type(arguments[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": _type(arguments[1])}
    return {"type": _SCALARS[kind]}


def _is_needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _default(field: dataclasses.Field[Any]) -> dict[str, Any]:
    if field.default_factory is not dataclasses.MISSING:
        return {"default": config.dump(field.default_factory())}
    if field.default is not dataclasses.MISSING and field.default is not None:
        return {"default": config.dump(field.default)}
    return {}


def _descriptions(cls: type) -> dict[str, dict[str, str]]:
    """The string literals below the fields of a class, which Python itself does not keep."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    found = {}
    for field, text in zip(body.body, body.body[1:], strict=False):  # type: ignore[attr-defined]
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                found[name] = {"description": " ".join(words.split())}
    return found
