# SPDX-License-Identifier: Apache-2.0
"""The verb that looks the machine over: doctor."""

from __future__ import annotations

from pathlib import Path

import click

from orinkit.cli.options import PATH


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
@click.option("--disk", type=PATH, help="A folder on the disk that bundles lie on; without it the root.")
@click.option("--root", type=PATH, default=Path("/"), hidden=True)
@click.pass_context
def doctor(ctx: click.Context, as_json: bool, disk: Path | None, root: Path) -> None:
    """Look this machine over: releases with known faults, memory, power mode, permissions, and what to do.

    The exit code is 1 where something is bad.
    """
    import dataclasses
    import json

    from orinkit.device.doctor import examine
    from orinkit.device.facts import read_facts
    from orinkit.device.sensors import Sensors

    card = Sensors(root).card
    found = examine(read_facts(root, disk, sm=card.sm if card else None))
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(finding) for finding in found], indent=2))
    else:
        colours = {"ok": "green", "warn": "yellow", "bad": "red"}
        for finding in found:
            level = click.style(f"{finding.level:<4}", fg=colours[finding.level])
            click.echo(f"{level} {finding.name}: {finding.found}")
            if finding.advice:
                click.echo(f"     {finding.advice}")
    ctx.exit(1 if any(finding.level == "bad" for finding in found) else 0)
