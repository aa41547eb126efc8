# SPDX-License-Identifier: Apache-2.0
"""From the body of a request, already checked against its schema, to what the scheduler is asked."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orinkit.errors import RequestError, ServiceError
from orinkit.runtime.request import Request
from orinkit.runtime.sampling import Sampling
from orinkit.serve import fields, strictjson

_SAMPLING = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
_COMPLETION_TOKENS = 16
"""What OpenAI takes where max_tokens is left out of a completion."""
_MASK = 2**64 - 1


@dataclass(frozen=True)
class Ask:
    """What a client wants, whichever route it came by; the prompt is still to be made into tokens."""

    model: str
    prompt: str | tuple[int, ...] | tuple[Mapping[str, Any], ...]
    """A text, token ids, or messages."""
    settings: Request
    """A request whose prompt is replaced."""
    n: int = 1
    stream: bool = False
    include_usage: bool = False
    has_logprobs: bool = False
    timeout: float | None = None
    user: str = ""

    def requests(self, prompt: Sequence[int], deadline: float) -> list[Request]:
        """One request for each choice; they differ in their seed."""
        seed = self.settings.sampling.seed
        return [
            replace(
                self.settings,
                prompt=tuple(prompt),
                deadline=deadline,
                sampling=replace(self.settings.sampling, seed=(seed + index) & _MASK),
            )
            for index in range(self.n)
        ]


def chat(body: Any) -> Ask:
    """Raises ServiceError 400."""
    strictjson.check(body, fields.CHAT)
    if "max_tokens" in body and "max_completion_tokens" in body:
        raise strictjson.refusal("max_tokens", "expected max_tokens or max_completion_tokens, found both")
    if body.get("top_logprobs") is not None and not body.get("logprobs"):
        raise strictjson.refusal("top_logprobs", "expected logprobs to be true with it")
    max_tokens = body.get("max_tokens", body.get("max_completion_tokens"))
    messages = tuple(_message(message, f"messages[{i}]") for i, message in enumerate(body["messages"]))
    return _ask(body, messages, max_tokens, has_logprobs=body.get("logprobs", False))


def completion(body: Any) -> Ask:
    """Raises ServiceError 400."""
    strictjson.check(body, fields.COMPLETION)
    prompt = body["prompt"] if isinstance(body["prompt"], str) else tuple(map(int, body["prompt"]))
    return _ask(body, prompt, body.get("max_tokens", _COMPLETION_TOKENS), body.get("logprobs") is not None)


def _ask(body: Mapping[str, Any], prompt: Any, max_tokens: float | None, has_logprobs: bool) -> Ask:
    stop = body.get("stop") or ()
    try:
        settings = Request(
            prompt=(0,),
            sampling=_sampling(body),
            max_tokens=None if max_tokens is None else int(max_tokens),
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
        )
    except RequestError as error:
        raise refused(error) from None
    options = body.get("stream_options")
    if options is not None and not body.get("stream"):
        raise strictjson.refusal("stream_options", "expected stream to be true with it")
    return Ask(
        model=body["model"],
        prompt=prompt,
        settings=settings,
        n=int(body.get("n", 1)),
        stream=body.get("stream", False),
        include_usage=bool(options and options.get("include_usage")),
        has_logprobs=has_logprobs,
        timeout=body.get("timeout"),
        user=body.get("user", ""),
    )


def refused(error: RequestError) -> ServiceError:
    """A refusal of the runtime as one of the API; its message begins with the field."""
    field, _, _ = str(error).partition(":")
    known = {**fields.CHAT["properties"], **fields.COMPLETION["properties"]}
    return ServiceError(str(error), 400, "invalid_request", param=field if field in known else None)


def _sampling(body: Mapping[str, Any]) -> Sampling:
    seed = body.get("seed")
    return Sampling(
        **{"temperature": 1.0, **{name: body[name] for name in _SAMPLING if name in body}},
        top_k=int(body.get("top_k", 0)),
        logit_bias={int(token): bias for token, bias in (body.get("logit_bias") or {}).items()},
        seed=secrets.randbits(64) if seed is None else int(seed) & _MASK,
    )


def _message(message: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """A message as templates read it: content is one text, arguments of calls are data."""
    content, calls = message.get("content"), message.get("tool_calls", ())
    if content is None and not calls:
        raise strictjson.refusal(f"{where}.content", "expected a text, found none")
    text = content if isinstance(content, str) else "".join(part["text"] for part in content or ())
    role = "system" if message["role"] == "developer" else message["role"]
    kept = {name: message[name] for name in ("name", "tool_call_id") if name in message}
    made = {"role": role, "content": text, **kept}
    if calls:
        made["tool_calls"] = [_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]
    return made


def _call(call: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    function = call["function"]
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise strictjson.refusal(f"{where}.function.arguments", "expected a JSON object as text")
    return {"id": call["id"], "type": "function", "function": {"name": function["name"], "arguments": arguments}}
