# SPDX-License-Identifier: Apache-2.0
"""YAML and JSON into frozen dataclasses, through one reader; the dataclass is the schema.

`read` loads a YAML file, `parse` takes data that is already loaded, `dump` gives plain data back.
An unknown key is an error that names the nearest key; a missing key or a wrong type names the path to it.
Field types understood: bool, int, float, str, Literal, tuple[X, ...], dict[str, X], X | None and other dataclasses.
A dataclass may define `validate(self) -> None` and raise `ConfigError`; the path is put in front of its message.

A file may hold one document of plain mappings, lists and values: no tags, no aliases, no repeated keys, at most
`MAX_BYTES` of UTF-8 and `MAX_DEPTH` levels. Numbers are finite, whole ones fit in 64 bits.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import reprlib
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml

from orinkit.errors import ConfigError

T = TypeVar("T")

MAX_BYTES = 1 << 20
"""Largest settings file; a larger one is refused before it is parsed."""

MAX_DEPTH = 32
"""Most levels of mappings and lists inside each other."""

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
"""What a recipe, target, board or stack may be called: it becomes the name of a file and an argument of a command."""


class _Loader(yaml.SafeLoader):
    """Safe YAML without tags, without aliases (a few lines of them expand to gigabytes) and without repeated keys."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError(f"line {line}: expected plain values, found a YAML alias (*name); write the value out")
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise ConfigError(f"line {line}: expected plain values, found the YAML tag {_shown(tag)}; remove it")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ConfigError(f"line {line}: expected at most {MAX_DEPTH} levels of nesting, found more; flatten it")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise ConfigError(f"line {line}: expected a word as key, found {_shown(key)}; put quotes around it")
            if key in seen:
                raise ConfigError(f"line {line}: the key {_shown(key)} stands here a second time; keep one")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def load_yaml(path: Path) -> Any:
    """Plain data of a YAML file. Raises ConfigError: missing, too large, not UTF-8, not YAML, or not plain."""
    try:
        return yaml.load(_text(path), Loader=_Loader)  # noqa: S506  (derived from SafeLoader)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a YAML file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a YAML file") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, a 13th month, a number of 5,000 digits
        raise ConfigError(f"{path}: expected YAML, found: {_one_line(error)}") from None


def _text(path: Path) -> str:
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)  # the size that the file system states is 0 for a device
    if len(content) > MAX_BYTES:
        raise ConfigError(f"expected at most {MAX_BYTES} bytes, found more; is this a settings file?")
    return content.decode("utf-8")


def read(path: Path, cls: type[T]) -> T:
    """Read the YAML file at `path` as an instance of the frozen dataclass `cls`. Raises ConfigError."""
    return parse(load_yaml(path), cls, str(path))


def parse(data: Any, cls: type[T], where: str) -> T:
    """Plain data as an instance of `cls`; `where` starts every message. Raises ConfigError."""
    return typing.cast(T, _convert(data, cls, where))


def dump(value: Any) -> Any:
    """The plain data from which `parse` makes an equal value; fields that hold their default None are left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = ((field, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {field.name: dump(item) for field, item in pairs if not (item is None and field.default is None)}
    if isinstance(value, dict):
        return {key: dump(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [dump(item) for item in value]
    return value


def check_name(key: str, value: str) -> None:
    """Refuse a `value` of `key` that is not a `NAME`. Raises ConfigError."""
    if not NAME.fullmatch(value):
        raise ConfigError(f"{key}: expected at most 64 of a-z, 0-9, '.', '_' and '-', found {_shown(value)}")


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
        raise ConfigError(f"{where}: expected a mapping of keys to values, found {_shown(data)}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in data:
        if key not in fields:
            raise ConfigError(f"{where}: unknown key {_shown(key)}; {nearest(str(key), fields)}")
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
    hint = "; put quotes around yes, no, on and off" if isinstance(data, bool) else ""
    raise ConfigError(f"{where}: expected one of {', '.join(map(repr, allowed))}, found {_shown(data)}{hint}")


def _tuple(data: Any, item: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(data, list):
        raise ConfigError(f"{where}: expected a list, found {_shown(data)}")
    return tuple(_convert(value, item, f"{where}[{index}]") for index, value in enumerate(data))


def _mapping(data: Any, item: Any, where: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected a mapping of names to values, found {_shown(data)}")
    return {_scalar(key, str, where): _convert(value, item, f"{where}: {key}") for key, value in data.items()}


def _scalar(data: Any, kind: type, where: str) -> Any:
    if kind in (int, float) and type(data) is int and data.bit_length() > 63:
        raise ConfigError(f"{where}: expected a number of at most 63 bits, found one of {data.bit_length()}")
    if kind is float and type(data) is int:
        return float(data)
    if type(data) is not kind:
        raise ConfigError(f"{where}: expected {_KINDS[kind]}, found {_shown(data)}")
    if isinstance(data, float) and not math.isfinite(data):
        raise ConfigError(f"{where}: expected a finite number, found {data!r}")
    return data


_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text (put quotes around it)",
}

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def _shown(data: Any) -> str:
    """What stands in the file, short enough for a message."""
    if data is None:
        return "nothing"
    if isinstance(data, (dict, list)):
        return "a mapping" if isinstance(data, dict) else "a list"
    if isinstance(data, bool):
        return str(data).lower()
    if isinstance(data, int) and data.bit_length() > 63:
        return f"a number of {data.bit_length()} bits"
    return _SHORT.repr(data)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
