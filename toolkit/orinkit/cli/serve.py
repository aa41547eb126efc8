# SPDX-License-Identifier: Apache-2.0
"""The verbs of the daemon: serve and status."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orinkit.cli.options import KEYS, PATH, combined
from orinkit.cli.program import visible

if TYPE_CHECKING:
    from orinkit.serve.settings import Settings

_FLAGS: tuple[Callable[[Any], Any], ...] = (
    click.argument("bundle", required=False, type=PATH),
    click.option("--config", type=PATH, help="YAML file with the same names as the flags; a flag goes before it."),
    KEYS,
    click.option("--engine", help="What runs the graph.  [default: onnxruntime]"),
    click.option("--name", help="Name of the model in the API; without it that of the bundle."),
    click.option("--host", help="Address to listen at.  [default: 127.0.0.1]"),
    click.option("--port", type=int, help="TCP port; 0 = any free one, -1 = no TCP.  [default: 8000]"),
    click.option("--sockets", type=PATH, help="Folder for the Unix sockets api.sock, live.sock and admin.sock."),
    click.option("--api-keys", type=PATH, help="File with one API key a line, readable by its owner only."),
    click.option("--allow-remote/--no-allow-remote", default=None, help="Listen where other machines reach it."),
    click.option("--allowed-hosts", multiple=True, help="A name that a Host header may have; several times."),
    click.option("--queue", type=int, help="Most requests that wait for a slot.  [default: 16]"),
    click.option("--client-limit", type=int, help="Most answers for one client at a time.  [default: 16]"),
    click.option("--connections", type=int, help="Most open connections.  [default: 1024]"),
    click.option("--deadline", type=float, help="Seconds that a request may take.  [default: 300]"),
    click.option("--drain", type=float, help="Seconds that running answers get at the end.  [default: 30]"),
    click.option("--load", type=float, help="Seconds that a worker may take to load.  [default: 900]"),
    click.option("--step", type=float, help="Least seconds of a step's deadline.  [default: 2]"),
    click.option("--restart", type=float, help="Seconds before the first restart.  [default: 1]"),
    click.option("--restart-limit", type=float, help="Most seconds before a restart.  [default: 60]"),
    click.option("--fault-limit", type=int, help="Faults in ten minutes that are too many.  [default: 5]"),
    click.option("--farewell", type=float, help="Seconds of /readyz before giving up.  [default: 30]"),
    click.option("--check", type=float, help="Seconds of idleness between self-tests.  [default: 60]"),
    click.option("--root", type=PATH, help="Folder below which /proc/meminfo and /sys are read.  [default: /]"),
)
FLAGS = combined(*_FLAGS)


@click.command()
@FLAGS
def serve(config: Path | None, **flags: Any) -> None:
    """Serve BUNDLE through an API that OpenAI's clients understand."""
    from orinkit.serve import daemon

    settings, _ = _resolved(config, flags)
    click.get_current_context().exit(daemon.run(settings))


@click.command()
@FLAGS
def status(config: Path | None, **flags: Any) -> None:
    """Show each setting and where it came from, and how the server that has them is."""
    from dataclasses import asdict

    from orinkit.serve import status as asked

    settings, origins = _resolved(config, flags)
    for name, value in asdict(settings).items():
        click.echo(visible(f"{name}: {_shown(value)}  ({origins[name]})"))
    state, code = asked.ask(settings)
    click.echo(visible(f"server: {state}"))
    click.get_current_context().exit(code)


def _resolved(config: Path | None, flags: dict[str, Any]) -> tuple[Settings, dict[str, str]]:
    from orinkit.serve.settings import resolve

    plain = {name: str(value) if isinstance(value, Path) else value for name, value in flags.items()}
    return resolve(plain, config)


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
