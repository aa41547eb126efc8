# SPDX-License-Identifier: Apache-2.0
"""`orin-run`: the verbs of the board. Heavy imports happen inside the verbs, so that --help is instant."""

from __future__ import annotations

import contextlib
import re
import secrets
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from orinkit.errors import OrinError, RequestError

if TYPE_CHECKING:
    from orinkit.bundle import Bundle, PublicKey
    from orinkit.runtime.request import Event, Finished, Request

_Verb = TypeVar("_Verb", bound=Callable[..., Any])

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters but tab and newline: a model must not move the cursor or set the title of a terminal."""


def visible(text: str) -> str:
    r"""`text` with control characters written out (ESC as \x1b)."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


class Program(click.Group):
    """Turns what a verb raises into one line and an exit code; a closed pipe is left to click, which is quiet."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except OrinError as error:
            _fail(ctx, _error_line(error), error.exit_code)
        except KeyboardInterrupt:
            _fail(ctx, "", 130)


def _fail(ctx: click.Context, line: str, code: int) -> NoReturn:
    click.echo(line, err=True)
    ctx.exit(code)


def _error_line(error: OrinError) -> str:
    return visible(f"error: {' '.join(str(error).split())}")


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="orinkit")
def main() -> None:
    """Run language models from bundles that orin-export has written."""


def _options(*options: Callable[[Any], Any]) -> Callable[[_Verb], _Verb]:
    """Several options as one decorator, in the order in which --help shows them."""

    def decorate(verb: Any) -> Any:
        for option in reversed(options):
            verb = option(verb)
        return verb

    return decorate


_path = click.Path(path_type=Path)
_keys = click.option("--keys", type=_path, help="Folder of trusted keys; the signature is checked.")
_bundle = _options(click.argument("bundle", type=_path), _keys)
_engine = click.option("--engine", default="onnxruntime", help="What runs the graph.")
_answer = _options(
    click.option("--max-tokens", type=int, help="Most tokens of an answer; without it as many as fit."),
    click.option("--temperature", type=float, default=0.0, help="0 = always the most likely token; up to 2."),
    click.option("--top-k", type=int, default=0, help="Choose among the k most likely tokens; 0 = all."),
    click.option("--top-p", type=float, default=1.0, help="Choose among the most likely tokens of this probability."),
    click.option("--min-p", type=float, default=0.0, help="Least probability, relative to the most likely token."),
    click.option("--repetition-penalty", type=float, default=1.0, help="Above 1: against what has been said."),
    click.option("--presence-penalty", type=float, default=0.0, help="Against tokens that the answer has, -2 to 2."),
    click.option("--frequency-penalty", type=float, default=0.0, help="The same, for each time that it has them."),
    click.option("--seed", type=int, help="The same seed draws the same tokens; without it one is drawn."),
    click.option("--stop", multiple=True, help="End the answer before this text; may be given several times."),
)


@main.command()
@_bundle
@click.argument("prompt")
@_answer
@_engine
def generate(bundle: Path, prompt: str, keys: Path | None, engine: str, **answer: Any) -> None:
    """Continue PROMPT, without chat template."""
    from orinkit.runtime.session import stream
    from orinkit.runtime.start import start

    settings = _settings(**answer)
    scheduler = start(_open(bundle, keys), engine)
    tokens = scheduler.tokenizer.encode(prompt, scheduler.capacity)
    _write_answer(stream(scheduler, replace(settings, prompt=tokens)))


@main.command()
@_bundle
@click.option("--system", help="The system message.")
@click.option("--say", multiple=True, help="A turn of yours; may be given several times. Without it you type.")
@_answer
@_engine
def chat(bundle: Path, system: str | None, say: tuple[str, ...], keys: Path | None, engine: str, **answer: Any) -> None:
    """Talk to the model. Ctrl-C stops an answer, Ctrl-D ends the conversation."""
    from orinkit.runtime.session import Session
    from orinkit.runtime.start import start

    if not say and not sys.stdin.isatty():
        raise click.UsageError("expected a terminal to type in, or at least one --say TEXT")
    settings = _settings(**answer)
    session = Session(start(_open(bundle, keys), engine), settings, system)
    for text in say or _typed():
        if say:
            click.echo(f"> {visible(text)}")
        with _ctrl_c() as is_pressed:
            try:
                _write_answer(session.say(text, is_pressed))
            except RequestError as error:
                if say:
                    raise
                click.echo(_error_line(error), err=True)


@main.command()
@_bundle
@_engine
def selftest(bundle: Path, keys: Path | None, engine: str) -> None:
    """Check that the bundle gives its golden tokens on this machine."""
    from orinkit.runtime import selftest as golden
    from orinkit.runtime.start import start

    opened = _open(bundle, keys)
    cases = opened.manifest.golden
    num_tokens = golden.selftest(start(opened, engine), cases)
    click.echo(f"self-test passed: {len(cases)} golden prompts, {num_tokens} tokens, engine {engine}")


@main.command()
@_bundle
def inspect(bundle: Path, keys: Path | None) -> None:
    """Verify the bundle and show what it is."""
    opened = _open(bundle, keys)
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


@main.command()
@click.argument("archive", type=_path)
@click.argument("folder", type=_path)
@_keys
def unpack(archive: Path, folder: Path, keys: Path | None) -> None:
    """Verify the bundle in ARCHIVE, a .tar of orin-export, and write it as the new FOLDER."""
    from orinkit.bundle import unpack as unpack_archive
    from orinkit.ops import VERSIONS

    unpack_archive(archive, folder, keys=_trusted(keys), supported=VERSIONS)
    click.echo(f"{folder}: unpacked")


def _open(folder: Path, keys: Path | None) -> Bundle:
    """The bundle in `folder`, verified; with `keys` also its signature."""
    from orinkit.bundle import Bundle
    from orinkit.ops import VERSIONS

    return Bundle.open(folder, keys=_trusted(keys), supported=VERSIONS)


def _trusted(keys: Path | None) -> tuple[PublicKey, ...] | None:
    from orinkit.bundle import load_keys

    return None if keys is None else load_keys(keys)


def _settings(max_tokens: int | None, stop: tuple[str, ...], seed: int | None, **sampling: Any) -> Request:
    """The options as a request whose prompt is still to come, checked before anything is loaded."""
    from orinkit.runtime.request import Request
    from orinkit.runtime.sampling import Sampling

    seed = secrets.randbits(64) if seed is None else seed
    return Request((0,), Sampling(seed=seed, **sampling), max_tokens=max_tokens, stop=stop)


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


def _signature(bundle: Bundle, is_checked: bool) -> str:
    from orinkit.bundle.manifest import SIGNATURE

    if is_checked:
        return "good, by a trusted key"
    is_signed = (bundle.folder / SIGNATURE).exists()
    return "present, not checked: give --keys" if is_signed else "none"
