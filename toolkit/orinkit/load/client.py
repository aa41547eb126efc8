# SPDX-License-Identifier: Apache-2.0
"""One client: sends a request as a stream and notes when its pieces come."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

from orinkit.errors import ConfigError
from orinkit.load.workload import Shot

_MAX_ERROR = 1 << 16
CANCELLED = "cancelled"


@dataclass
class Outcome:
    """How one request went. Times are seconds of the monotonic clock."""

    begin: float
    """When it was to be sent: waiting for a busy client of this tool is part of its latency."""
    times: list[float] = field(default_factory=list)
    """When each piece of text came."""
    end: float = 0.0
    num_prompt: int = 0
    num_tokens: int = 0
    """Tokens of the answer, as the server counts them; of a cancelled one, the pieces that came."""
    error: str | None = None
    """What kind of failure; None: the answer is whole."""
    is_refused: bool = False
    """Whether the server has answered that it will not."""

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.times[0] - self.begin

    @property
    def per_token(self) -> float:
        """Mean seconds per token after the first one."""
        return (self.times[-1] - self.times[0]) / max(1, self.num_tokens - 1)

    @property
    def whole(self) -> float:
        """Seconds until the end of the answer, or of the refusal."""
        return self.end - self.begin


class Client:
    """A server at `url`, such as http://localhost:8000. Proxies of the environment are not used."""

    def __init__(self, url: str, key: str | None, connections: int, timeout: float) -> None:
        self._http = httpx.AsyncClient(
            base_url=url,
            headers={} if key is None else {"Authorization": f"Bearer {key}"},
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            timeout=timeout,
            trust_env=False,
        )
        self._model = ""

    async def open(self) -> str:
        """Learn the name of the model. Raises ConfigError: no such server."""
        try:
            answer = await self._http.get("/v1/models")
            answer.raise_for_status()
            self._model = answer.json()["data"][0]["id"]
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, TypeError) as error:
            raise ConfigError(f"url: expected a server that answers /v1/models, found: {error}") from None
        return self._model

    async def close(self) -> None:
        await self._http.aclose()

    async def send(self, shot: Shot, begin: float) -> Outcome:
        """Send one request; it was to be sent at `begin`. Whatever goes wrong is noted and not raised."""
        outcome = Outcome(begin)
        body = {
            "model": self._model,
            "prompt": shot.prompt,
            "max_tokens": shot.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        try:
            async with self._http.stream("POST", "/v1/completions", json=body) as answer:
                if answer.status_code == 200:
                    outcome.error = await _read(answer, shot, outcome)
                else:
                    outcome.error, outcome.is_refused = f"{answer.status_code} {await _code(answer)}", True
        except httpx.TimeoutException:
            outcome.error = "timeout"
        except httpx.TransportError as error:
            outcome.error = f"connection: {type(error).__name__}"
        except (ValueError, LookupError, TypeError, AttributeError):
            outcome.error = "no stream of completions"
        outcome.end = time.monotonic()
        return outcome


async def _read(answer: httpx.Response, shot: Shot, outcome: Outcome) -> str | None:
    """Read a stream to its end, or to where this client leaves: what went wrong."""
    if shot.cancel_after == 0:
        return CANCELLED
    async for line in answer.aiter_lines():
        if not line.startswith("data: "):
            continue
        if line == "data: [DONE]":
            return None
        problem = _note(json.loads(line[6:]), outcome)
        if problem is not None:
            return problem
        if len(outcome.times) == shot.cancel_after:
            outcome.num_tokens = len(outcome.times)
            return CANCELLED
    return "incomplete"


def _note(data: Any, outcome: Outcome) -> str | None:
    """Note one event: the kind of the error, if it tells one."""
    if "error" in data:
        return f"stream {data['error'].get('code')}"
    if data.get("usage"):
        outcome.num_prompt = data["usage"]["prompt_tokens"]
        outcome.num_tokens = data["usage"]["completion_tokens"]
    if any(choice.get("text") for choice in data.get("choices", ())):
        outcome.times.append(time.monotonic())
    return None


async def _code(answer: httpx.Response) -> str:
    """The code of an error's body."""
    try:
        return str(json.loads((await answer.aread())[:_MAX_ERROR])["error"]["code"])[:40]
    except (ValueError, LookupError, TypeError):
        return "without a code"
