# SPDX-License-Identifier: Apache-2.0
"""From the body of a request, already checked against its schema, to what the scheduler is asked."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from orinkit.errors import RequestError, ServiceError
from orinkit.runtime.grammar import Grammar
from orinkit.runtime.request import Request
from orinkit.runtime.sampling import Sampling
from orinkit.runtime.tokenizer import ChatPrompt
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
    tools: tuple[Mapping[str, Any], ...] = ()
    """Functions that the model may call."""
    tool_choice: str = "auto"
    """auto, required, or the name of a function."""

    @property
    def is_forced(self) -> bool:
        """Whether the answer has to be a call."""
        return bool(self.tools) and self.tool_choice != "auto"

    def requests(self, prompt: ChatPrompt, deadline: float, client: str) -> list[Request]:
        """One request for each choice; they differ in their seed."""
        seed = self.settings.sampling.seed
        return [
            replace(
                self.settings,
                prompt=prompt.tokens,
                cuts=prompt.cuts,
                deadline=deadline,
                client=f"{client} {self.user}",
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
    asked = _ask(body, messages, max_tokens, body.get("logprobs", False), int(body.get("top_logprobs", 0)))
    return replace(asked, **_tools(body))


def completion(body: Any) -> Ask:
    """Raises ServiceError 400."""
    strictjson.check(body, fields.COMPLETION)
    prompt = body["prompt"] if isinstance(body["prompt"], str) else tuple(map(int, body["prompt"]))
    logprobs = body.get("logprobs")
    return _ask(body, prompt, body.get("max_tokens", _COMPLETION_TOKENS), logprobs is not None, int(logprobs or 0))


def _ask(body: Mapping[str, Any], prompt: Any, max_tokens: float | None, has_logprobs: bool, top_logprobs: int) -> Ask:
    stop = body.get("stop") or ()
    try:
        settings = Request(
            prompt=(0,),
            sampling=_sampling(body),
            max_tokens=None if max_tokens is None else int(max_tokens),
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            top_logprobs=top_logprobs,
            grammar=_grammar(body.get("response_format")),
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


def _grammar(wanted: Mapping[str, Any] | None) -> Grammar | None:
    """What the answer must look like. Raises RequestError: too large or too deep."""
    match wanted:
        case {"type": "json_schema", "json_schema": {"schema": schema}}:
            return Grammar("json_schema", json.dumps(schema))
        case {"type": "regex", "regex": text}:
            return Grammar("regex", text)
        case {"type": "json_object"}:
            return Grammar("json_object")
    return None


def _tools(body: Mapping[str, Any]) -> dict[str, Any]:
    """What a client says of tools; none are left if the model must not call any."""
    tools, choice = tuple(body.get("tools") or ()), body.get("tool_choice", "auto")
    names = [tool["function"]["name"] for tool in tools]
    if len(set(names)) < len(names):
        raise strictjson.refusal("tools", "expected functions of different names")
    if isinstance(choice, dict):
        choice = choice.get("function", {}).get("name", "")
    if choice not in ("none", "auto") and (not tools or choice not in ("required", *names)):
        raise strictjson.refusal("tool_choice", "expected none, auto, required or a function of tools")
    if choice not in ("none", "auto") and (body.get("response_format") or {"type": "text"})["type"] != "text":
        raise strictjson.refusal("response_format", "expected none beside a tool_choice that forces a call")
    return {} if choice == "none" else {"tools": tools, "tool_choice": choice}


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
