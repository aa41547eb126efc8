# SPDX-License-Identifier: Apache-2.0
"""What a bench records beside its figures: machine, memory, and the plan that it is compared with."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from orinkit.bundle import Bundle
from orinkit.device.bench import Case
from orinkit.device.facts import read_facts
from orinkit.device.sensors import Sensors
from orinkit.errors import ResourceError
from orinkit.memory.needs import ENGINES, memory_plan
from orinkit.memory.speed import Speed


def predictor(bundle: Bundle, engine: str, sensors: Sensors) -> Speed | None:
    """Predictions for the GPU of the bundle's target, else for the card that is there; None: for neither."""
    manifest = bundle.manifest
    gpu = manifest.target.board.gpu or (sensors.card.gpu if sensors.card else None)
    return Speed(manifest.model, manifest.settled, gpu) if gpu and engine != "onnxruntime" else None


def machine(bundle: Bundle, engine: str, sensors: Sensors) -> dict[str, Any]:
    """Bundle, engine, machine and date."""
    facts = read_facts()
    card = sensors.card
    return {
        "bundle": bundle.manifest.name,
        "digest": bundle.digest,
        "engine": engine,
        "orinkit": version("orinkit"),
        "machine": facts.model or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": card.name if card else None,
        "driver": card.driver if card else facts.driver or None,
        "jetson_linux": facts.system.l4t or None,
        "power_mode": facts.power_mode or None,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def memory(bundle: Bundle, engine: str, sensors: Sensors) -> dict[str, int | None]:
    """Bytes: the plan's, the most that this process had, and what programs hold on the card."""
    manifest = bundle.manifest
    gpu = sensors.card.gpu if sensors.card else manifest.target.board.gpu
    plan = memory_plan(manifest.model, manifest.settled, engine, sm_count=gpu.sm_count if gpu else None)
    return {
        "planned": plan.total() if engine in ENGINES else None,
        "peak of the process": _peak(),
        "in use on the card": sensors.read().gpu_memory_bytes,
    }


def write(path: Path, record: dict[str, Any], cases: Iterable[Case]) -> None:
    """Everything as JSON. Raises ResourceError."""
    rows = [asdict(case) | {"ratio": case.ratio} for case in cases]
    try:
        path.write_text(json.dumps(record | {"cases": rows}, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written ({error.strerror}); give another --json") from None


def _peak() -> int | None:
    """The most bytes that were resident; getrusage would count those of the process that started this one."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(found[0]) << 10 if found else None
