# SPDX-License-Identifier: Apache-2.0
"""YAML and JSON into frozen dataclasses, through one reader; the dataclass is the schema.

`read` loads a YAML file, `parse` takes data that is already loaded, `dump` gives plain data back.
An unknown key is an error that names the nearest key; a missing key or a wrong type names the path to it.
Field types understood: bool, int, float, str, Literal, tuple[X, ...], dict[str, X], X | None and other dataclasses.
A dataclass may define `validate(self) -> None` and raise `ConfigError`; the path is put in front of its message.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml

from orinkit.errors import ConfigError

T = TypeVar("T")

MAX_BYTES = 1 << 20
"""Largest settings file; a larger one is refused before it is parsed."""


class _Loader(yaml.SafeLoader):
    """Safe YAML without aliases (a few lines of them expand to gigabytes) and without repeated keys."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise ConfigError("expected plain values, found a YAML alias (*name); write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise ConfigError(f"line {line}: the key {key!r} stands here a second time; keep one")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def load_yaml(path: Path) -> Any:
    """Plain data of a YAML file. Raises ConfigError: missing, too large, not UTF-8, not YAML, unsafe tags, aliases."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ConfigError(f"{path}: expected at most {MAX_BYTES} bytes, found {size}; is this a settings file?")
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506  (derived from SafeLoader)
    except ConfigError as error:
        raise error if str(error).startswith(str(path)) else ConfigError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a YAML file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: expected YAML, found: {_one_line(error)}") from None


def read(path: Path, cls: type[T]) -> T:
    """Read the YAML file at `path` as an instance of the frozen dataclass `cls`. Raises ConfigError."""
    return parse(load_yaml(path), cls, str(path))


def parse(data: Any, cls: type[T], where: str) -> T:
    """Plain data as an instance of `cls`; `where` starts every message. Raises ConfigError."""
    return typing.cast(T, _convert(data, cls, where))


def dump(value: Any) -> Any:
    """The plain data from which `parse` makes an equal value; fields that hold their default None are left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {name: dump(item) for name, item in pairs if item is not None}
    if isinstance(value, dict):
        return {key: dump(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [dump(item) for item in value]
    return value


def nearest(word: str, known: typing.Iterable[str]) -> str:
    """A hint for a word that is not one of `known`: the nearest one, or all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"


def _convert(data: Any, kind: Any, where: str) -> Any:
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _dataclass(data, typing.cast(type, kind), where)
    if origin in (Union, types.UnionType):
        inner = [arm for arm in typing.get_args(kind) if arm is not type(None)]
        return None if data is None else _convert(data, inner[0], where)
    if origin is Literal:
        return _literal(data, typing.get_args(kind), where)
    if origin is tuple:
        return _tuple(data, typing.get_args(kind)[0], where)
    if origin is dict:
        return _mapping(data, typing.get_args(kind)[1], where)
    return _scalar(data, kind, where)


def _dataclass(data: Any, cls: type, where: str) -> Any:
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected a mapping of keys to values, found {_name(data)}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in data:
        if key not in fields:
            raise ConfigError(f"{where}: unknown key {key!r}; {nearest(str(key), fields)}")
    values = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _convert(data[name], hints[name], f"{where}: {name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where}: the key {name!r} is missing; add it")
    made = cls(**values)
    if hasattr(made, "validate"):
        try:
            made.validate()
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
    return made


def _literal(data: Any, allowed: tuple[Any, ...], where: str) -> Any:
    if any(data == value and type(data) is type(value) for value in allowed):
        return data
    raise ConfigError(f"{where}: expected one of {', '.join(map(repr, allowed))}, found {data!r}")


def _tuple(data: Any, item: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(data, list):
        raise ConfigError(f"{where}: expected a list, found {_name(data)}")
    return tuple(_convert(value, item, f"{where}[{index}]") for index, value in enumerate(data))


def _mapping(data: Any, item: Any, where: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected a mapping of names to values, found {_name(data)}")
    return {_scalar(key, str, where): _convert(value, item, f"{where}: {key}") for key, value in data.items()}


def _scalar(data: Any, kind: type, where: str) -> Any:
    if kind is float and type(data) is int:
        return float(data)
    if type(data) is not kind:
        raise ConfigError(f"{where}: expected {_KINDS[kind]}, found {_name(data)}")
    if isinstance(data, float) and not math.isfinite(data):
        raise ConfigError(f"{where}: expected a finite number, found {data!r}")
    return data


_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text (quote it if it looks like a number)",
}


def _name(data: Any) -> str:
    if data is None:
        return "nothing"
    if isinstance(data, (dict, list)):
        return "a mapping" if isinstance(data, dict) else "a list"
    return f"{data!r}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
