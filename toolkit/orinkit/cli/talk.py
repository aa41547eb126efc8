# SPDX-License-Identifier: Apache-2.0
"""The verbs that make the model speak: generate and chat."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orinkit.cli.options import ANSWER, BUNDLE, ENGINE, answer_settings, open_bundle
from orinkit.cli.program import error_line, visible
from orinkit.errors import RequestError

if TYPE_CHECKING:
    from orinkit.runtime.request import Event, Finished


@click.command()
@BUNDLE
@click.argument("prompt")
@ANSWER
@ENGINE
def generate(bundle: Path, prompt: str, keys: Path | None, engine: str, **answer: Any) -> None:
    """Continue PROMPT, without chat template."""
    from orinkit.runtime.session import stream
    from orinkit.runtime.start import start

    settings = answer_settings(**answer)
    scheduler = start(open_bundle(bundle, keys), engine)
    tokens = scheduler.tokenizer.encode(prompt, scheduler.capacity)
    _write_answer(stream(scheduler, replace(settings, prompt=tokens)))


@click.command()
@BUNDLE
@click.option("--system", help="The system message.")
@click.option("--say", multiple=True, help="A turn of yours; may be given several times. Without it you type.")
@ANSWER
@ENGINE
def chat(bundle: Path, system: str | None, say: tuple[str, ...], keys: Path | None, engine: str, **answer: Any) -> None:
    """Talk to the model. Ctrl-C stops an answer, Ctrl-D ends the conversation."""
    from orinkit.runtime.session import Session
    from orinkit.runtime.start import start

    if not say and not sys.stdin.isatty():
        raise click.UsageError("expected a terminal to type in, or at least one --say TEXT")
    settings = answer_settings(**answer)
    session = Session(start(open_bundle(bundle, keys), engine), settings, system)
    for text in say or _typed():
        if say:
            click.echo(f"> {visible(text)}")
        with _ctrl_c() as is_pressed:
            try:
                _write_answer(session.say(text, is_pressed))
            except RequestError as error:
                if say:
                    raise
                click.echo(error_line(error), err=True)


def _write_answer(events: Iterable[Event]) -> None:
    """Write the text of an answer as it comes, and then one line about it to the error stream."""
    from orinkit.runtime.request import Finished

    is_terminal = sys.stdout.isatty()
    for event in events:
        # color=True: click would take escape sequences out of what goes to a file.
        click.echo(visible(event.text) if is_terminal else event.text, nl=False, color=True)
        if isinstance(event, Finished):
            click.echo()
            click.secho(_summary(event), err=True, dim=True)


def _summary(finished: Finished) -> str:
    timings = finished.timings
    return (
        f"{timings.prompt_tokens} prompt tokens, {timings.generated_tokens} generated ({finished.reason}), "
        f"prefill {timings.prefill_rate:.1f} tokens/s, decode {timings.decode_rate:.1f} tokens/s"
    )


def _typed() -> Iterator[str]:
    """Lines typed at the terminal, up to Ctrl-D; empty ones are passed over."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (gives input() its line editing)
    while True:
        try:
            text = input("> ")
        except EOFError:
            click.echo()
            return
        if text.strip():
            yield text


@contextlib.contextmanager
def _ctrl_c() -> Iterator[Callable[[], bool]]:
    """Within, Ctrl-C is noted instead of raised, so that no step is torn apart: a function that tells of it."""
    pressed = False

    def note(*_: object) -> None:
        nonlocal pressed
        pressed = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
