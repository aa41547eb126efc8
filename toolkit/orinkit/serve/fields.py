# SPDX-License-Identifier: Apache-2.0
"""The bodies of requests, described once: what is accepted, and what the OpenAPI document says.

Names and meaning are those of OpenAI's API; those that it lacks are marked. null stands for a field that is left out,
where OpenAI's own clients send it.
"""

from __future__ import annotations

from typing import Any

from orinkit.runtime.request import MAX_STOP_CHARACTERS, MAX_STOPS
from orinkit.runtime.sampling import MAX_BIASES

MAX_CHOICES = 4
MAX_TOP_LOGPROBS = 20
MAX_TOOLS = 64
MAX_MESSAGES = 4096
MAX_SCHEMA_CHARACTERS = 1 << 16

Fields = dict[str, dict[str, Any]]


def _object(properties: Fields, *required: str, **more: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
        **more,
    }


def _number(low: float, high: float, **more: Any) -> dict[str, Any]:
    return {"type": "number", "minimum": low, "maximum": high, **more}


def _whole(low: int, high: int, **more: Any) -> dict[str, Any]:
    return {"type": "integer", "minimum": low, "maximum": high, **more}


def _or_null(*schemas: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [*schemas, {"type": "null"}]}


TEXT: dict[str, Any] = {"type": "string"}
FLAG: dict[str, Any] = {"type": "boolean"}
ANY_OBJECT: dict[str, Any] = {"type": "object"}
NAME: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": 64}
_STOP = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARACTERS}
_MAX_TOKENS = _whole(1, 2**31 - 1)

SHARED: Fields = {
    "model": {**TEXT, "description": "Name of the model, as /v1/models gives it."},
    "n": _whole(1, MAX_CHOICES),
    "stream": FLAG,
    "stream_options": _or_null(_object({"include_usage": FLAG})),
    "temperature": _number(0, 2, description="0, or 0.01 to 2."),
    "top_p": _number(0, 1),
    "top_k": _whole(0, 2**31 - 1, description="Not OpenAI's: keep the k most likely tokens; 0 = all."),
    "min_p": _number(0, 1, description="Not OpenAI's: least probability relative to the most likely token."),
    "repetition_penalty": _number(0.1, 10, description="Not OpenAI's."),
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "logit_bias": _or_null(
        {
            "type": "object",
            "patternProperties": {"^(0|[1-9][0-9]{0,9})$": _number(-100, 100)},
            "additionalProperties": False,
            "maxProperties": MAX_BIASES,
        }
    ),
    "seed": _or_null(_whole(-(2**63), 2**63 - 1)),
    "stop": _or_null(_STOP, {"type": "array", "items": _STOP, "maxItems": MAX_STOPS}),
    "timeout": _number(0.001, 86400, description="Not OpenAI's: seconds that the answer may take, queueing included."),
    "user": {**NAME, "description": "Whoever asks, for fairness and the prefix cache; any text."},
}

_PART = _object({"type": {"type": "string", "enum": ["text"]}, "text": TEXT}, "type", "text")
_CONTENT = {"anyOf": [TEXT, {"type": "array", "items": _PART, "maxItems": 256}]}
_CALL = _object(
    {
        "id": {"type": "string", "maxLength": 128},
        "type": {"type": "string", "enum": ["function"]},
        "function": _object({"name": NAME, "arguments": TEXT}, "name", "arguments"),
    },
    "id",
    "type",
    "function",
)
MESSAGE: dict[str, Any] = _object(
    {
        "role": {"type": "string", "enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": _or_null(*_CONTENT["anyOf"]),
        "name": NAME,
        "tool_calls": {"type": "array", "items": _CALL, "maxItems": 128},
        "tool_call_id": {"type": "string", "maxLength": 128},
    },
    "role",
)
_TOOL = _object(
    {
        "type": {"type": "string", "enum": ["function"]},
        "function": _object(
            {"name": NAME, "description": TEXT, "parameters": ANY_OBJECT, "strict": _or_null(FLAG)}, "name"
        ),
    },
    "type",
    "function",
)
_CHOSEN = _object(
    {"type": {"type": "string", "enum": ["function"]}, "function": _object({"name": NAME}, "name")}, "type", "function"
)
_FORMATS = [
    _object({"type": {"type": "string", "enum": ["text", "json_object"]}}, "type"),
    _object(
        {
            "type": {"type": "string", "enum": ["json_schema"]},
            "json_schema": _object(
                {"name": NAME, "description": TEXT, "schema": ANY_OBJECT, "strict": _or_null(FLAG)}, "name", "schema"
            ),
        },
        "type",
        "json_schema",
    ),
    _object(
        {"type": {"type": "string", "enum": ["regex"]}, "regex": {"type": "string", "minLength": 1, "maxLength": 4096}},
        "type",
        "regex",
        description="Not OpenAI's: the answer matches this regular expression.",
    ),
]

CHAT: dict[str, Any] = _object(
    {
        **SHARED,
        "messages": {"type": "array", "items": MESSAGE, "minItems": 1, "maxItems": MAX_MESSAGES},
        "max_tokens": _MAX_TOKENS,
        "max_completion_tokens": _MAX_TOKENS,
        "logprobs": FLAG,
        "top_logprobs": _whole(0, MAX_TOP_LOGPROBS),
        "response_format": _or_null(*_FORMATS),
        "tools": _or_null({"type": "array", "items": _TOOL, "maxItems": MAX_TOOLS}),
        "tool_choice": {"anyOf": [{"type": "string", "enum": ["none", "auto", "required"]}, _CHOSEN]},
        "parallel_tool_calls": FLAG,
    },
    "model",
    "messages",
)
COMPLETION: dict[str, Any] = _object(
    {
        **SHARED,
        "prompt": {"anyOf": [TEXT, {"type": "array", "items": {"type": "integer"}, "minItems": 1}]},
        "max_tokens": _MAX_TOKENS,
        "logprobs": _or_null(_whole(0, 5)),
        "response_format": _or_null(*_FORMATS),
    },
    "model",
    "prompt",
)
