# SPDX-License-Identifier: Apache-2.0
"""What both programs are made of: a group of verbs whose errors are one line and an exit code."""

from __future__ import annotations

import re
from typing import Any, NoReturn

import click

from orinkit.errors import OrinError

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
            _fail(ctx, error_line(error), error.exit_code)
        except KeyboardInterrupt:
            _fail(ctx, "", 130)


def _fail(ctx: click.Context, line: str, code: int) -> NoReturn:
    click.echo(line, err=True)
    ctx.exit(code)


def error_line(error: OrinError) -> str:
    return visible(f"error: {' '.join(str(error).split())}")
