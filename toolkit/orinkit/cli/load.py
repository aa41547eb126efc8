# SPDX-License-Identifier: Apache-2.0
"""The verb that measures a running server: load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from orinkit.cli.options import PATH
from orinkit.cli.program import visible


@click.command()
@click.argument("url")
@click.option("--requests", type=int, default=100, help="Requests that count.")
@click.option("--concurrency", type=int, default=1, help="Clients; with --rate, the most requests at a time.")
@click.option("--rate", type=float, help="Requests per second, as a Poisson process.  [default: a closed loop]")
@click.option("--prompt", metavar="N|N-M,...", default="128", help="Tokens of prompts: ranges, each as likely.")
@click.option("--answer", metavar="N|N-M,...", default="64", help="Most tokens of answers.")
@click.option("--prefix", type=int, default=0, help="Tokens with which all prompts begin alike.")
@click.option("--cancel", type=float, default=0.0, help="Share of requests that are left at a random place.")
@click.option("--warmup", type=int, default=2, help="Requests at the beginning that do not count.")
@click.option("--seed", type=int, default=0, help="Of lengths, prompts, times and cancels.")
@click.option("--first-limit", type=float, help="Seconds to the first token that a good answer keeps.")
@click.option("--token-limit", type=float, help="Seconds per token that a good answer keeps.")
@click.option("--timeout", type=float, default=60.0, help="Seconds without any data after which a request has failed.")
@click.option("--api-key-file", type=PATH, help="File whose first word is the API key.")
@click.option("--json", "output", type=PATH, help="Write everything to this file as well.")
def load(
    url: str,
    prompt: str,
    answer: str,
    first_limit: float | None,
    token_limit: float | None,
    timeout: float,
    api_key_file: Path | None,
    output: Path | None,
    **plain: Any,
) -> None:
    """Measure the server at URL (such as http://localhost:8000) under load.

    Exits with 1 if not one answer was whole. Needs httpx: pip install 'orinkit[load]'.
    """
    import asyncio
    import json
    import math

    from orinkit.load.report import Limits, report, table
    from orinkit.load.workload import Lengths, Workload

    workload = Workload(prompt=Lengths.parse(prompt), answer=Lengths.parse(answer), **plain)
    workload.validate()
    run = asyncio.run(_run(workload, url, _key(api_key_file), timeout))
    limits = Limits(*(math.inf if limit is None else limit for limit in (first_limit, token_limit)))
    figures = report(workload, run, limits)
    for line in table(figures):
        click.echo(visible(line))
    if output is not None:
        output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if not figures["requests"]["whole"]:
        click.get_current_context().exit(1)


async def _run(workload: Any, url: str, key: str | None, timeout: float) -> Any:
    from orinkit.errors import ConfigError

    try:
        from orinkit.load.client import Client
        from orinkit.load.loops import run
    except ModuleNotFoundError as error:
        if error.name != "httpx":
            raise
        raise ConfigError("expected httpx, found none; run pip install 'orinkit[load]'") from None
    client = Client(url, key, workload.concurrency, timeout)
    try:
        return await run(workload, client)
    finally:
        await client.close()


def _key(path: Path | None) -> str | None:
    """Keys come from files: the arguments of a process are for everybody to read."""
    from orinkit.errors import ConfigError

    if path is None:
        return None
    try:
        return path.read_text(encoding="ascii").split()[0]
    except (OSError, UnicodeDecodeError, IndexError) as error:
        raise ConfigError(f"--api-key-file: expected a file with a key, found {path}: {error}") from None
