# SPDX-License-Identifier: Apache-2.0
"""The verb that says what a board is and how a first run went: board-report."""

from __future__ import annotations

from pathlib import Path

import click

from orinkit.cli.options import BUNDLE, PATH, open_bundle


@click.command("board-report")
@BUNDLE
@click.option("-o", "--output", type=PATH, default=Path("board-report.json"), help="The file to write.")
@click.option("--selftest", multiple=True, metavar="ENGINE", help="Run the self-test too; may be given several times.")
@click.option("--bench", multiple=True, type=PATH, help="A file of `bench --json`; may be given several times.")
def board_report(
    bundle: Path, keys: Path | None, output: Path, selftest: tuple[str, ...], bench: tuple[Path, ...]
) -> None:
    """Collect what machine this is, its versions, the plan's record and results of benches in one file to send back.

    The file holds no prompts, no keys, no names of users or folders. Look into it before you send it.
    """
    from orinkit.device import report

    found = report.collect(open_bundle(bundle, keys), selftest, bench)
    report.write(found, output)
    for item in found["selftests"]:
        click.echo(f"self-test with {item['engine']}: {'passed' if item['passed'] else item['text']}")
    click.echo(f"{output}: written; read it before you send it")
