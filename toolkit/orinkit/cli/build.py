# SPDX-License-Identifier: Apache-2.0
"""The verb that makes a bundle's plan on the board: build."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from orinkit.cli.options import BUNDLE, open_bundle


@click.command()
@BUNDLE
@click.option("--optimization-level", type=int, default=3, help="How long TensorRT looks for fast tactics, 0 to 5.")
@click.option("--aux-streams", type=int, default=0, help="Most streams beside the main one.")
@click.option("--timeout", type=float, default=3600.0, help="Seconds after which the build is given up.")
def build(bundle: Path, keys: Path | None, optimization_level: int, aux_streams: int, timeout: float) -> None:
    """Build the TensorRT plan of a bundle for this machine, beside the bundle."""
    from orinkit.device.build import build as build_plan
    from orinkit.engines.plans import BuildOptions

    options = BuildOptions(optimization_level, aux_streams)
    options.validate()
    with _Lines() as lines:
        built = build_plan(open_bundle(bundle, keys), options, timeout_s=timeout, progress=lines.show)
    record = built.record
    how = f"built in {record.seconds:.0f} s" if built.is_new else "up to date"
    machine = record.origin.machine
    click.echo(
        f"{built.path}: {how}, {record.size / 1e6:.1f} MB, TensorRT {machine.tensorrt}, CUDA {machine.cuda}, "
        f"compute capability {machine.sm / 10}"
    )


class _Lines:
    """Progress as lines on the error stream; on a terminal one line that is written again and again."""

    def __init__(self) -> None:
        self._shown = ""
        self._is_terminal = sys.stderr.isatty()

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_terminal and self._shown:
            click.echo(err=True)

    def show(self, phase: str, done: float) -> None:
        line = f"build: {100 * done:3.0f} %, {phase}"
        if line != self._shown:
            self._shown = line
            click.echo(f"\r\x1b[K{line}" if self._is_terminal else line, err=True, nl=not self._is_terminal)
