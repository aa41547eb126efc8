# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI document at /openapi.json: the schemas that requests are checked against, and the answers."""

from __future__ import annotations

from typing import Any

from orinkit.serve import fields

_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
                "retryable": {"type": "boolean"},
                "request_id": {"type": "string"},
            },
            "required": ["message", "type", "param", "code", "retryable", "request_id"],
        }
    },
    "required": ["error"],
}
_WORDS = {
    400: "The request is wrong; the message names the field.",
    401: "No known key.",
    403: "A Host or Origin of somebody else.",
    404: "No such model or path.",
    405: "Another method.",
    408: "The request came too slowly.",
    413: "The body is too long.",
    414: "The target is too long.",
    415: "The body is no plain JSON.",
    422: "The prompt was being answered at two faults.",
    429: "The queue is full, or the client has too many requests; see Retry-After.",
    431: "The headers are too long.",
    503: "The server cannot answer now; the code says why, Retry-After when to try again.",
    504: "The deadline has passed.",
}
_OF_ALL = (400, 401, 403, 405, 408, 413, 414, 415, 431)
_OF_GENERATION = (404, 422, 429, 503, 504)


def document(version: str) -> dict[str, Any]:
    """The document for a server of this version."""
    events: dict[str, Any] = {"text/event-stream": {}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "orin-run", "version": version, "license": {"name": "Apache-2.0"}},
        "paths": {
            "/v1/chat/completions": {"post": _generation("chat", "Continue a conversation", fields.CHAT, events)},
            "/v1/completions": {"post": _generation("complete", "Continue a text", fields.COMPLETION, events)},
            "/v1/models": {"get": _told("models", "The model that is served")},
            "/v1/models/{model}": {
                "get": {
                    **_told("model", "One model", 404),
                    "parameters": [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}],
                }
            },
            "/livez": {"get": {**_told("livez", "Whether the supervisor is alive"), "security": []}},
            "/readyz": {"get": _told("readyz", "Whether a request would be served now", 503)},
            "/metrics": {"get": _told("metrics", "Counters for Prometheus", kind="text/plain")},
        },
        "components": {
            "schemas": {"Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


def _generation(name: str, summary: str, schema: dict[str, Any], events: dict[str, Any]) -> dict[str, Any]:
    described = _told(name, summary, *_OF_GENERATION)
    described["responses"]["200"]["content"] |= events
    described["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return described


def _told(name: str, summary: str, *errors: int, kind: str = "application/json") -> dict[str, Any]:
    schema = {"type": "object"} if kind == "application/json" else {"type": "string"}
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    answers = {str(code): {"description": _WORDS[code], "content": content} for code in sorted({*_OF_ALL, *errors})}
    if name == "readyz":
        answers["503"] = {"description": "It would not; the reason is told.", "content": {kind: {"schema": schema}}}
    done = {"description": "Done.", "content": {kind: {"schema": schema}}}
    return {"operationId": name, "summary": summary, "responses": {"200": done, **answers}}
