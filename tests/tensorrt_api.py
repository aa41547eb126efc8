# SPDX-License-Identifier: Apache-2.0
"""Which names of TensorRT our code uses, found by its syntax tree, and whether a release has them.

Types are inferred as far as our code goes: annotations with `trt.`, constructors, results of methods by the signatures
of the bindings. What cannot be inferred and has the name of a member of TensorRT is reported as unresolved.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DATA = ROOT / "tests/data/tensorrt"
ALIAS = "trt"
ENUM_PROPERTIES = {"name", "value"}
_RETURN = re.compile(r"-> (?:[\w.:]*[.:])?(\w+)$")


def our_modules() -> list[Path]:
    """The modules that import TensorRT."""
    paths = sorted((ROOT / "toolkit/orinkit").rglob("*.py"))
    return [path for path in paths if f"import tensorrt as {ALIAS}" in path.read_text(encoding="utf-8")]


@dataclass(frozen=True)
class Release:
    """What the bindings of one release have, of the classes that we use."""

    version: str
    classes: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, path: Path) -> Release:
        return cls(path.stem, json.loads(path.read_text(encoding="utf-8")))

    def has(self, name: str, member: str) -> bool:
        found = self.classes.get(name, {})
        if member in found.get("enum", ()):
            return True
        if member in ENUM_PROPERTIES and "enum" in found:
            return True
        return member in found.get("members", {}) or any(self.has(base, member) for base in found.get("bases", ()))

    def signatures(self, name: str, member: str) -> list[str]:
        """The ways to call a member; empty for a property."""
        found = self.classes.get(name, {})
        stated = found.get("members", {}).get(member)
        if stated is None:
            return next((s for base in found.get("bases", ()) if (s := self.signatures(base, member))), [])
        return [] if stated == "attribute" else [line for line in stated if "*args" not in line]

    def result(self, name: str, member: str) -> str | None:
        """The class of TensorRT that a method gives, if it gives one."""
        found = [match[1] for line in self.signatures(name, member) if (match := _RETURN.search(line))]
        return found[0] if found and found[0] in self.classes else None

    def takes(self, name: str, member: str, count: int, keywords: frozenset[str]) -> bool:
        """Whether a member can be called with so many positional arguments and these keywords."""
        return any(_fits(line, count, keywords) for line in self.signatures(name, member))


def parameters(signature: str) -> list[tuple[str, bool]]:
    """Name of each parameter but self, and whether it has a default."""
    inside = signature[signature.index("(") + 1 : signature.rindex(") ->")]
    depth, parts, start = 0, [], 0
    for index, character in enumerate(inside + ","):
        depth += (character in "[(<") - (character in "])>")
        if character == "," and depth <= 0:
            parts.append(inside[start:index].strip())
            start = index + 1
    return [(part.split(":")[0].strip(), "=" in part) for part in parts[1:] if part]


def _fits(signature: str, count: int, keywords: frozenset[str]) -> bool:
    stated = parameters(signature)
    names = [name for name, _ in stated]
    given = set(names[:count]) | keywords
    needed = {name for name, has_default in stated if not has_default}
    return count <= len(names) and keywords <= set(names[count:]) and needed <= given


@dataclass(frozen=True)
class Use:
    """One use of a member; `arguments` where it is called."""

    owner: str
    member: str
    line: str
    arguments: tuple[int, frozenset[str]] | None = None


@dataclass(frozen=True)
class Override:
    """A method by which one of our classes implements an interface of TensorRT."""

    base: str
    method: str
    names: tuple[str, ...]


@dataclass
class Uses:
    """Everything that a module uses."""

    path: Path
    release: Release
    found: set[Use] = field(default_factory=set)
    classes: set[str] = field(default_factory=set)
    optional: set[str] = field(default_factory=set)
    unresolved: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.tree = ast.parse(self.path.read_text(encoding="utf-8"))
        annotations = {id(node) for root in _annotations(self.tree) for node in ast.walk(root)}
        for scope in self._scopes():
            known = self._names(scope)
            for node in _own_nodes(scope):
                if id(node) not in annotations:
                    self._look_at(node, known)

    @cached_property
    def attributes(self) -> dict[str, str]:
        """Attributes of our own objects that hold objects of TensorRT, by name."""
        found = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Attribute):
                found[node.target.attr] = _annotated(node.annotation)
        return {name: kind for name, kind in found.items() if kind}

    @cached_property
    def functions(self) -> dict[str, str]:
        """Our functions that give objects of TensorRT."""
        nodes = [node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef) and node.returns]
        return {node.name: kind for node in nodes if node.returns and (kind := _annotated(node.returns))}

    def overrides(self) -> Iterator[Override]:
        for node in ast.walk(self.tree):
            for base in node.bases if isinstance(node, ast.ClassDef) else ():
                kind = _annotated(base)
                for method in node.body if isinstance(node, ast.ClassDef) and kind else ():
                    if isinstance(method, ast.FunctionDef) and self.release.has(kind, method.name):
                        yield Override(kind, method.name, tuple(arg.arg for arg in method.args.args[1:]))

    def _scopes(self) -> Iterator[ast.AST]:
        yield self.tree
        yield from (node for node in ast.walk(self.tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef)))

    def _names(self, scope: ast.AST) -> dict[str, str]:
        """Local names that hold objects of TensorRT."""
        known: dict[str, str] = {}
        if isinstance(scope, ast.FunctionDef):
            arguments = [*scope.args.posonlyargs, *scope.args.args, *scope.args.kwonlyargs]
            known = {item.arg: kind for item in arguments if item.annotation and (kind := _annotated(item.annotation))}
        for node in _own_nodes(scope):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                known[node.target.id] = _annotated(node.annotation)
            elif isinstance(node, ast.Assign):
                known |= self._assigned(node, known)
        return {name: kind for name, kind in known.items() if kind}

    def _assigned(self, node: ast.Assign, known: dict[str, str]) -> dict[str, str]:
        target, value = node.targets[0], node.value
        pairs = [(target, value)]
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            pairs = list(zip(target.elts, value.elts, strict=True))
        return {name.id: self._type(item, known) or "" for name, item in pairs if isinstance(name, ast.Name)}

    def _type(self, node: ast.expr, known: dict[str, str]) -> str | None:
        """The class of TensorRT whose object an expression gives."""
        if isinstance(node, ast.Name):
            return known.get(node.id)
        if isinstance(node, ast.Attribute):
            return self.attributes.get(node.attr)
        if isinstance(node, ast.Call):
            kind = _annotated(node.func)
            if kind:
                return kind
            if isinstance(node.func, ast.Attribute):
                owner = self._type(node.func.value, known)
                own = self.functions.get(node.func.attr)
                return self.release.result(owner, node.func.attr) if owner else own
        return None

    def _look_at(self, node: ast.AST, known: dict[str, str]) -> None:
        if isinstance(node, ast.Call):
            self._call(node, known)
        if not isinstance(node, ast.Attribute):
            return
        line = f"{self.path.name}:{node.lineno}"
        if isinstance(node.value, ast.Name) and node.value.id == ALIAS:
            self.classes.add(node.attr)
            return
        owner = _annotated(node.value) or self._type(node.value, known)
        if owner:
            self.found.add(Use(owner, node.attr, line))
        elif any(self.release.has(name, node.attr) for name in self.release.classes):
            self.unresolved.add(node.attr)

    def _call(self, node: ast.Call, known: dict[str, str]) -> None:
        line = f"{self.path.name}:{node.lineno}"
        keywords = frozenset(str(item.arg) for item in node.keywords)
        arguments = len(node.args), keywords
        kind = _annotated(node.func)
        if kind:
            self.found.add(Use(kind, "__init__", line, arguments))
        elif isinstance(node.func, ast.Attribute) and (owner := self._type(node.func.value, known)):
            self.found.add(Use(owner, node.func.attr, line, arguments))
        elif isinstance(node.func, ast.Name) and node.func.id == "getattr":
            target, name = node.args[:2]
            if isinstance(target, ast.Name) and target.id == ALIAS and isinstance(name, ast.Constant):
                self.optional.add(str(name.value))


def _annotated(node: ast.expr) -> str:
    """X of `trt.X`, `trt.X | None` or `trt.X.Y`; empty for anything else."""
    if isinstance(node, ast.BinOp):
        return _annotated(node.left)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == ALIAS:
        return node.attr
    return ""


def _annotations(tree: ast.AST) -> Iterator[ast.expr]:
    """They are never evaluated."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.AnnAssign, ast.arg)) and node.annotation is not None:
            yield node.annotation
        elif isinstance(node, ast.FunctionDef) and node.returns is not None:
            yield node.returns


def _own_nodes(scope: ast.AST) -> Iterator[ast.AST]:
    """Nodes of a scope in the order of the text, without those of scopes inside."""
    for node in ast.iter_child_nodes(scope):
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node
            yield from _own_nodes(node)
        else:
            yield from (base for item in getattr(node, "bases", []) for base in ast.walk(item))
