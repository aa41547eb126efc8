# SPDX-License-Identifier: Apache-2.0
"""What every bench on a GPU records: the machine, the ceilings measured beside the times, and rows of one form.

A row has `op`, `case` (a name that holds over time), `us`, and, from its shape, `bytes` (the least that has to be moved
between memory and GPU) and `operations` (multiplications and additions, each counted).
"""

from __future__ import annotations

import datetime
import importlib
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


def matrix_rate() -> float:
    """Operations per second of PyTorch's bfloat16 product of 8192 cubed."""
    torch: Any = importlib.import_module("torch")
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(5):
        a @ b
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(20):
        a @ b
    end.record()
    end.synchronize()
    return float(2 * 8192**3 / (start.elapsed_time(end) / 20) * 1e3)


def ceilings(stream: gpu.Stream) -> dict[str, float]:
    """What no kernel of the same run can beat: 10^9 bytes and 10^12 operations per second."""
    return {"copy_gb_per_s": copy_bandwidth(stream) / 1e9, "matrix_tflop_per_s": matrix_rate() / 1e12}


def row(op: str, case: str, us: float, nbytes: float, operations: float, **facts: Any) -> dict[str, Any]:
    """One time in microseconds with what its shape asks for, and further facts of the op's own."""
    return {"op": op, "case": case, "us": round(us, 3), "bytes": nbytes, "operations": operations} | facts


def show(result: dict[str, Any]) -> None:
    """A row on the screen."""
    rates = f"{result['bytes'] / result['us'] / 1e3:8.0f} GB/s {result['operations'] / result['us'] / 1e6:8.1f} TFLOP/s"
    print(f"{result['us']:10.2f} us {rates}  {result['op']}, {result['case']}", flush=True)


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
