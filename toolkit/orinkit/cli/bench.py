# SPDX-License-Identifier: Apache-2.0
"""The verb that measures a bundle on this machine: bench."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orinkit.cli.options import BUNDLE, ENGINE, PATH, open_bundle

if TYPE_CHECKING:
    from orinkit.bundle import Bundle
    from orinkit.device.bench import Case

HEAD = ("", "batch", "tokens", "tokens/s", "slowest", "fastest", "host us", "plan", "ratio", "W", "GPU MHz")
WIDTHS = (8, 6, 8, 11, 11, 11, 9, 10, 6, 7, 8)


def _numbers(_: click.Context, __: click.Parameter, text: str) -> tuple[int, ...]:
    """Whole numbers with commas between them."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"expected whole numbers with commas between them, found {text!r}") from None


@click.command()
@BUNDLE
@ENGINE
@click.option("--prompt", callback=_numbers, metavar="N,N,...", default="128,512,2048", help="Lengths of prompts.")
@click.option("--batch", callback=_numbers, metavar="N,N,...", default="1,2,8", help="Sequences at the same time.")
@click.option(
    "--depth",
    callback=_numbers,
    metavar="N,N,...",
    default="0,2048",
    help="Tokens that sequences hold when decoding begins.",
)
@click.option("--tokens", type=int, default=64, help="Tokens that each sequence decodes in a repeat.")
@click.option("--repeat", type=int, default=3, help="Repeats, of which the median counts.")
@click.option("--json", "output", type=PATH, help="Write everything to this file as well.")
def bench(
    bundle: Path,
    keys: Path | None,
    engine: str,
    prompt: tuple[int, ...],
    batch: tuple[int, ...],
    depth: tuple[int, ...],
    tokens: int,
    repeat: int,
    output: Path | None,
) -> None:
    """Measure prefill and decode of a bundle on this machine, beside what its plan predicts.

    The ratio is measured by predicted; it is known where the bundle's target states a GPU.
    """
    from orinkit.device.bench import Workload
    from orinkit.device.measured import write

    workload = Workload(prompt, batch, depth, tokens, repeat)
    workload.validate()
    record, cases = _measure(open_bundle(bundle, keys), engine, workload)
    if output is not None:
        write(output, record, cases)


def _measure(bundle: Bundle, engine: str, workload: Any) -> tuple[dict[str, Any], list[Case]]:
    """Run it and write the rows as they come: what the machine is, and the cases."""
    from orinkit.device.bench import Bench
    from orinkit.device.measured import machine, memory, predictor
    from orinkit.device.sensors import Sensors
    from orinkit.runtime.start import start

    sensors = Sensors()
    scheduler = start(bundle, engine)
    manifest = bundle.manifest
    bench = Bench(scheduler, manifest.model, manifest.recipe.shapes, predictor(bundle, engine, sensors), sensors.read)
    click.echo(_line(HEAD))
    cases = []
    for case in bench.run(workload):
        cases.append(case)
        click.echo(_row(case))
    record = machine(bundle, engine, sensors) | {"memory": memory(bundle, engine, sensors)}
    for name, value in record["memory"].items():
        click.echo(f"{name}: {'not known' if value is None else f'{value / 1e6:,.1f} MB'}")
    return record, cases


def _row(case: Case) -> str:
    if case.skipped:
        return _line((case.kind, case.batch, case.tokens)) + f"  skipped: {case.skipped}"
    power = case.reading.power_w if case.reading else None
    clock = case.reading.gpu_mhz if case.reading else None
    figures = (case.tokens_per_second, case.slowest, case.fastest, case.host_us, case.predicted)
    return _line((case.kind, case.batch, case.tokens, *map(_short, figures), _short(case.ratio), _short(power), clock))


def _short(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:,.1f}" if value >= 10 else f"{value:.2f}"


def _line(cells: tuple[Any, ...]) -> str:
    texts = ("-" if cell is None else str(cell) for cell in cells)
    return "".join(text.rjust(width) for text, width in zip(texts, WIDTHS, strict=False)).rstrip()
