# SPDX-License-Identifier: Apache-2.0
"""The manifest as frozen dataclasses, and its one canonical spelling in JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from orinkit import config
from orinkit.errors import BundleError, ConfigError
from orinkit.model import ModelSpec
from orinkit.recipe import Named, Recipe, Source
from orinkit.target import Target

FORMAT = 1
MAX_BYTES = 8 << 20
"""Largest manifest; a larger one is refused before it is read."""
MAX_PATH = 100
"""Bytes of a path: what a plain tar header holds."""

MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
GRAPH = "model.onnx"
DATA = "model.data"
DEPLOY = "deploy.onnx"
DEPLOY_WEIGHTS = "deploy.json"
TOKENIZER = "tokenizer/tokenizer.json"
PLUGINS = "plugins/liborin_plugins.so"
KERNELS = "plugins/liborin_kernels.so"

SUFFIXES = frozenset({"", ".data", ".jinja", ".json", ".md", ".onnx", ".so", ".txt"})
"""An allow-list, because every loader has a suffix of its own for pickle."""

_PART = r"[A-Za-z0-9_][A-Za-z0-9._+-]*"
_PATH = re.compile(f"(?:{_PART}/)*{_PART}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FileEntry:
    """One file: path relative to the folder, size in bytes, SHA-256 in hexadecimal."""

    path: str
    size: int
    sha256: str

    def validate(self) -> None:
        check_path(self.path)
        if self.size < 0:
            raise ConfigError(f"size: expected at least 0 bytes, found {self.size}")
        if not _SHA256.fullmatch(self.sha256):
            raise ConfigError(f"sha256: expected 64 hexadecimal digits, found {self.sha256[:80]!r}")


@dataclass(frozen=True)
class Provenance:
    """Where the weights come from and which tool wrote the bundle."""

    tool: str
    """Name and version, like `orinkit 0.1.0`."""
    files: tuple[FileEntry, ...]
    """The checkpoint's files, relative to its folder."""
    repository: str | None = None
    revision: str | None = None
    """Repository and commit, spelled as a recipe spells them: never a URL, which may hold a token."""
    texts: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the token ids of each text that was used, by the section of the recipe that names it."""

    def validate(self) -> None:
        Source("checkpoint", self.repository, self.revision).validate()


@dataclass(frozen=True)
class GoldenCase:
    """A prompt and the tokens that greedy decoding must continue it with."""

    prompt: str
    prompt_tokens: tuple[int, ...]
    tokens: tuple[int, ...]
    margin: float
    """Least distance, over all steps, between the best logit and the second best."""

    def validate(self) -> None:
        if not self.prompt_tokens or not self.tokens:
            raise ConfigError("expected at least one token in prompt_tokens and in tokens; leave the case out")


@dataclass(frozen=True)
class Manifest:
    """Everything that a board must know of a bundle before it opens another file of it."""

    name: str
    recipe: Recipe
    target: Target
    model: ModelSpec
    ops: dict[str, str]
    """Version of each op that the graph uses."""
    provenance: Provenance
    golden: tuple[GoldenCase, ...]
    report: dict[str, float]
    """Numbers measured at export, such as kl_mean."""
    formats: dict[str, Named] = field(default_factory=dict)
    """How matrices are stored for which the recipe left it to a measurement, by their names in the graph."""
    version: int = 1
    """Rises with each release of a bundle name."""
    files: tuple[FileEntry, ...] = ()
    """Every file but manifest.json and manifest.sig, sorted by path. Filled in by `write`."""
    format: int = FORMAT

    @property
    def settled(self) -> Recipe:
        """The recipe with what was measured for it."""
        return self.recipe.with_formats(self.formats)

    def validate(self) -> None:
        config.check_name("name", self.name)
        if self.version < 1:
            raise ConfigError(f"version: expected at least 1, found {self.version}")
        _check_files([entry.path for entry in self.files])
        for case in self.golden:
            _check_tokens(case.prompt_tokens + case.tokens, self.model.vocab)


def check_path(path: str) -> None:
    """Refuse a path that a bundle may not hold. Raises ConfigError."""
    if len(path) > MAX_PATH or not _PATH.fullmatch(path):
        raise ConfigError(
            f"path: expected at most {MAX_PATH} of A-Z, a-z, 0-9 and '._+-' in parts that begin with a letter, a digit"
            f" or '_', found {path[:120]!r}; rename the file"
        )


def encode(manifest: Manifest) -> bytes:
    """The canonical bytes of a manifest."""
    return _canonical(config.dump(manifest))


def decode(raw: bytes) -> Manifest:
    """The manifest of which `raw` is the canonical spelling. Raises BundleError."""
    if len(raw) > MAX_BYTES:
        raise BundleError(f"{MANIFEST}: expected at most {MAX_BYTES} bytes, found {len(raw)}; get the bundle again")
    try:
        data = json.loads(raw.decode("utf-8"))
        canonical = _canonical(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{MANIFEST}: expected JSON, found: {str(error)[:200]}; get the bundle again") from None
    if canonical != raw:
        raise BundleError(
            f"{MANIFEST}: expected canonical JSON (sorted keys, none repeated, indented by one space), found another"
            " spelling; a manifest is written by the export and never edited"
        )
    _check_format(data)
    try:
        return config.parse(data, Manifest, MANIFEST)
    except ConfigError as error:
        raise BundleError(str(error)[:500]) from None
    except ZeroDivisionError:
        raise BundleError(f"{MANIFEST}: expected divisors in the model, found a 0; export the bundle again") from None


def check_ops(ops: Mapping[str, str], supported: Mapping[str, str]) -> None:
    """Refuse a graph with ops, or versions of them, that are not `supported`. Raises BundleError."""
    for op, version in sorted(ops.items()):
        if supported.get(op) != version:
            raise BundleError(
                f"{MANIFEST}: expected ops of this orinkit, found {op!r} version {version!r} where it has"
                f" {supported.get(op, 'none')!r}; export the bundle with the orinkit that is installed here"
            )


def _canonical(data: Any) -> bytes:
    text = json.dumps(data, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=1)
    return f"{text}\n".encode()


def _check_format(data: Any) -> None:
    # Before the other keys, because another format may have others.
    found = data.get("format") if isinstance(data, dict) else None
    if type(found) is not int or found != FORMAT:
        raise BundleError(
            f"{MANIFEST}: expected format {FORMAT}, found {str(found)[:40]!r}; use the orinkit that wrote the bundle"
        )


def _check_files(paths: list[str]) -> None:
    for path in (GRAPH, DATA, TOKENIZER):
        if path not in paths:
            raise ConfigError(f"files: expected {path!r}, found none; export the bundle again")
    if paths != sorted(set(paths)):
        raise ConfigError("files: expected each path once, in sorted order; export the bundle again")
    for path in paths:
        if PurePosixPath(path).suffix not in SUFFIXES:
            raise ConfigError(f"files: expected one of the suffixes {sorted(SUFFIXES)}, found {path!r}; leave it out")
    _check_spelling(paths)


def _check_spelling(paths: list[str]) -> None:
    """Each name, folders included, in one spelling and for one thing."""
    nodes = {name: f"{name} itself" for name in (MANIFEST, SIGNATURE)}
    for path in paths:
        parts = path.split("/")
        folders = ["/".join(parts[:count]) + "/" for count in range(1, len(parts))]
        for node in (*folders, path):
            other = nodes.setdefault(node.rstrip("/").lower(), node)
            if other != node:
                raise ConfigError(
                    f"files: expected names that differ in more than case, found {other!r} and {node!r}; rename one"
                )


def _check_tokens(tokens: tuple[int, ...], vocab: int) -> None:
    for token in tokens:
        if not 0 <= token < vocab:
            raise ConfigError(f"golden: expected token ids 0 to {vocab - 1}, found {token}; export the bundle again")
