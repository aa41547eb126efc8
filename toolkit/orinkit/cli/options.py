# SPDX-License-Identifier: Apache-2.0
"""Arguments and options that several verbs share, and what is made of them."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from orinkit.bundle import Bundle, PublicKey
    from orinkit.runtime.request import Request

_Verb = TypeVar("_Verb", bound=Callable[..., Any])


def combined(*options: Callable[[Any], Any]) -> Callable[[_Verb], _Verb]:
    """Several options as one decorator, in the order in which --help shows them."""

    def decorate(verb: Any) -> Any:
        for option in reversed(options):
            verb = option(verb)
        return verb

    return decorate


PATH = click.Path(path_type=Path)
KEYS = click.option("--keys", type=PATH, help="Folder of trusted keys; the signature is checked.")
BUNDLE = combined(click.argument("bundle", type=PATH), KEYS)
ENGINE = click.option("--engine", default="onnxruntime", help="What runs the graph.")
ANSWER = combined(
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


def open_bundle(folder: Path, keys: Path | None) -> Bundle:
    """The bundle in `folder`, verified; with `keys` also its signature."""
    from orinkit.bundle import Bundle
    from orinkit.ops import VERSIONS

    return Bundle.open(folder, keys=load_trusted(keys), supported=VERSIONS)


def load_trusted(keys: Path | None) -> tuple[PublicKey, ...] | None:
    """The keys in a folder; None stands for no check."""
    from orinkit.bundle import load_keys

    return None if keys is None else load_keys(keys)


def answer_settings(max_tokens: int | None, stop: tuple[str, ...], seed: int | None, **sampling: Any) -> Request:
    """The options as a request whose prompt is still to come, checked before anything is loaded."""
    from orinkit.runtime.request import Request
    from orinkit.runtime.sampling import Sampling

    seed = secrets.randbits(64) if seed is None else seed
    return Request((0,), Sampling(seed=seed, **sampling), max_tokens=max_tokens, stop=stop)
