# SPDX-License-Identifier: Apache-2.0
"""What every bench on a GPU records beside its times."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from cuda.bindings import runtime as rt

import gpu


def copy_bandwidth(stream: gpu.Stream) -> float:
    """Bytes per second, read plus written, of a device copy of 1 GiB."""
    size = 1 << 30
    source, target = (int(gpu.check(rt.cudaMalloc(size))) for _ in range(2))
    kind = rt.cudaMemcpyKind.cudaMemcpyDeviceToDevice
    time = stream.microseconds(lambda: gpu.check(rt.cudaMemcpyAsync(target, source, size, kind, stream.handle)))
    gpu.check(rt.cudaFree(source))
    gpu.check(rt.cudaFree(target))
    return 2 * size / time * 1e6


def machine() -> dict[str, str]:
    """GPU, clocks, driver, command and date."""
    query = "name,clocks.sm,clocks.mem,clocks.max.sm,driver_version"
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().split(", ")
    facts = dict(zip(query.split(","), found, strict=True))
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return facts | {"command": " ".join(sys.argv), "date": now}


def write(path: Path, result: dict[str, Any]) -> None:
    """A measurement with the machine that it was made on."""
    path.write_text(json.dumps({"machine": machine()} | result, indent=1) + "\n", encoding="utf-8")
