# SPDX-License-Identifier: Apache-2.0
"""What the server tells of itself: /livez, /readyz, /metrics, /v1/models."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orinkit.errors import ConfigError, ServiceError
from orinkit.memory import system
from orinkit.serve import board
from orinkit.serve.api import Call
from orinkit.serve.http import Response
from orinkit.serve.metrics import Labels
from orinkit.serve.supervisor import SERVING, Supervisor

_STALE = 2.5
"""Periods of the idle self-test after which a silent worker is no ready one."""
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Health:
    """Looks at supervisor and worker at each call: nothing is remembered from the one before."""

    def __init__(self, supervisor: Supervisor, model: str) -> None:
        self._supervisor = supervisor
        self._model = model
        self._created = int(time.time())

    async def livez(self, _: Call) -> Response:
        """The supervisor's loop turns, or nobody would answer."""
        return Response.json({"status": "alive"})

    async def readyz(self, _: Call) -> Response:
        reason = self.unready()
        body = {"status": self._supervisor.state, "reason": reason or self._supervisor.reason}
        return Response.json(body, 200 if reason is None else 503)

    def unready(self) -> str | None:
        """Why a new request would not be served now; None: it would be."""
        supervisor = self._supervisor
        if supervisor.state not in SERVING:
            return supervisor.reason or supervisor.state
        if supervisor.child is None:
            return "no worker"
        if time.monotonic() - supervisor.heard > _STALE * supervisor.settings.check:
            return "the worker is silent"
        if supervisor.is_low:
            return "low_memory"
        if len(supervisor.desk.waiting) >= supervisor.settings.queue:
            return "queue_full"
        return None

    async def models(self, _: Call) -> Response:
        return Response.json({"object": "list", "data": [self._entry()]})

    async def model(self, call: Call) -> Response:
        if call.exchange.head.path.removeprefix("/v1/models/") != self._model:
            raise ServiceError("no such model; see /v1/models", 404, "model_not_found", param="model")
        return Response.json(self._entry())

    def _entry(self) -> dict[str, Any]:
        supervisor = self._supervisor
        return {
            "id": self._model,
            "object": "model",
            "created": self._created,
            "owned_by": "orinkit",
            "max_model_len": supervisor.capacity,
        }

    async def metrics(self, _: Call) -> Response:
        text = self._supervisor.metrics.text(self._gauges())
        return Response(200, text.encode(), "text/plain; version=0.0.4; charset=utf-8")

    def _gauges(self) -> dict[str, Mapping[Labels, float]]:
        supervisor = self._supervisor
        gauges: dict[str, Mapping[Labels, float]] = {
            "vllm:num_requests_running": {(): len(supervisor.desk.running)},
            "vllm:num_requests_waiting": {(): len(supervisor.desk.waiting)},
            "orin_state": {(("state", supervisor.state),): 1},
            "orin_queue_limit": {(): supervisor.settings.queue},
            "orin_supervisor_resident_bytes": {(): resident(os.getpid())},
            "orin_worker_resident_bytes": {(): resident(supervisor.child.pid) if supervisor.child else 0},
            **board.gauges(Path(supervisor.settings.root) / "sys/class"),
        }
        with contextlib.suppress(ConfigError):
            figures = supervisor.memory.figures()
            gauges["orin_memory_available_bytes"] = {(): figures["MemAvailable"]}
            gauges["orin_memory_allocatable_bytes"] = {(): system.allocatable(figures) or 0}
            gauges["orin_nvmap_used_bytes"] = {(): figures.get("NvMapMemUsed", 0)}
        return gauges


def resident(pid: int) -> int:
    """Bytes of memory that a process has; 0 if there is none."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:  # noqa: PTH123  (read at every scrape)
            return int(file.read().split()[1]) * _PAGE
    except OSError:
        return 0
