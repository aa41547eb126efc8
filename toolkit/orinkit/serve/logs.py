# SPDX-License-Identifier: Apache-2.0
"""The log: one JSON object a line. Never a prompt, an answer or a key; texts are escaped and cut."""

from __future__ import annotations

import json
import sys
from datetime import datetime, timezone
from typing import TextIO

_MAX_TEXT = 200
Value = str | int | float | bool | None


class Log:
    """Writes lines to a stream that a service manager keeps."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream

    def __call__(self, event: str, **values: Value) -> None:
        """One line. Control characters, and all that is not ASCII, come out as escapes."""
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        shown = {name: _short(value) for name, value in values.items() if value is not None}
        self._stream.write(json.dumps({"time": now, "event": event, **shown}) + "\n")
        self._stream.flush()


def _short(value: Value) -> Value:
    if isinstance(value, float):
        return round(value, 6)
    return value[:_MAX_TEXT] if isinstance(value, str) else value
