# SPDX-License-Identifier: Apache-2.0
"""The chat page at /: four static files that hold nothing to protect, so that they are served without a key.

The page may load from and speak to this server only, runs no inline code, and cannot be framed.
"""

from __future__ import annotations

from pathlib import Path

from orinkit.serve.api import Answer, Call, Route
from orinkit.serve.http import Response

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page/style.css": ("style.css", "text/css; charset=utf-8"),
    "/page/chat.js": ("chat.js", "text/javascript; charset=utf-8"),
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
}


def routes() -> dict[str, Route]:
    """A route for each file; the files are read once, here."""
    return {path: Route("GET", _answer(*file), needs_key=False) for path, file in _FILES.items()}


def _answer(name: str, kind: str) -> Answer:
    response = Response(200, (Path(__file__).parent / name).read_bytes(), kind, _HEADERS)

    async def answer(_: Call) -> Response:
        return response

    return answer
