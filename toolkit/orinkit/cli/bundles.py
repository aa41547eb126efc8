# SPDX-License-Identifier: Apache-2.0
"""The verbs that look at a bundle: selftest, inspect and unpack."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orinkit.cli.options import BUNDLE, ENGINE, KEYS, PATH, load_trusted, open_bundle
from orinkit.cli.program import visible

if TYPE_CHECKING:
    from orinkit.bundle import Bundle


@click.command()
@BUNDLE
@ENGINE
def selftest(bundle: Path, keys: Path | None, engine: str) -> None:
    """Check that the bundle gives its golden tokens on this machine."""
    from orinkit.runtime import selftest as golden
    from orinkit.runtime.start import start

    opened = open_bundle(bundle, keys)
    cases = opened.manifest.golden
    num_tokens = golden.selftest(start(opened, engine), cases)
    click.echo(f"self-test passed: {len(cases)} golden prompts, {num_tokens} tokens, engine {engine}")


@click.command()
@BUNDLE
def inspect(bundle: Path, keys: Path | None) -> None:
    """Verify the bundle and show what it is."""
    opened = open_bundle(bundle, keys)
    rows = _facts(opened, is_checked=keys is not None)
    if not sys.stdout.isatty():
        for name, value in rows:
            click.echo(f"{name}: {value}")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(name, style="bold"), Text(visible(value)))
    Console().print(table)


@click.command()
@click.argument("archive", type=PATH)
@click.argument("folder", type=PATH)
@KEYS
def unpack(archive: Path, folder: Path, keys: Path | None) -> None:
    """Verify the bundle in ARCHIVE, a .tar of orin-export, and write it as the new FOLDER."""
    from orinkit.bundle import unpack as unpack_archive
    from orinkit.ops import VERSIONS

    unpack_archive(archive, folder, keys=load_trusted(keys), supported=VERSIONS)
    click.echo(f"{folder}: unpacked")


def _facts(bundle: Bundle, is_checked: bool) -> list[tuple[str, str]]:
    """What the manifest says, as pairs of name and value."""
    manifest = bundle.manifest
    recipe, model, origin = manifest.recipe, manifest.model, manifest.provenance
    shapes, quantise = recipe.shapes, recipe.quantise
    layers = f"{len(model.layers)} layers ({sum(layer.attention is not None for layer in model.layers)} with attention)"
    source = " ".join(filter(None, (origin.repository or "local", origin.revision)))
    rows = [
        ("bundle", f"{manifest.name} version {manifest.version}"),
        ("digest", f"sha256 {bundle.digest}"),
        ("signature", _signature(bundle, is_checked)),
        (
            "model",
            f"{model.architecture}, {layers}, hidden {model.hidden}",
        ),
        ("vocabulary", f"{model.vocab}, end of answer {', '.join(map(str, model.eos)) or 'none'}"),
        ("recipe", f"{recipe.name}: {quantise.method}, group {quantise.group_size}, head {quantise.head}"),
        *_chosen(manifest.formats),
        ("shapes", f"capacity {shapes.capacity}, slots {shapes.slots}, chunk {shapes.chunk}"),
        ("target", f"{manifest.target.id}: {manifest.target.board.name}, {manifest.target.stack.name}"),
        ("ops", ", ".join(f"{name} {version}" for name, version in sorted(manifest.ops.items())) or "none"),
        ("golden", f"{len(manifest.golden)} prompts, {sum(len(case.tokens) for case in manifest.golden)} tokens"),
        ("checkpoint", f"{source}, {len(origin.files)} files"),
        ("written by", origin.tool),
    ]
    rows += [(f"report: {name}", f"{value:.6g}") for name, value in sorted(manifest.report.items())]
    rows += [(entry.path, f"{entry.size:,} bytes") for entry in manifest.files]
    return [*rows, ("total", f"{sum(entry.size for entry in manifest.files):,} bytes")]


def _chosen(formats: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """How often each format was chosen by a measurement."""
    counts = Counter("head " + chosen if name == "head" else chosen for name, chosen in formats.items())
    if counts:
        yield "measured", ", ".join(f"{count} x {name}" for name, count in sorted(counts.items()))


def _signature(bundle: Bundle, is_checked: bool) -> str:
    from orinkit.bundle.manifest import SIGNATURE

    if is_checked:
        return "good, by a trusted key"
    is_signed = (bundle.folder / SIGNATURE).exists()
    return "present, not checked: give --keys" if is_signed else "none"
