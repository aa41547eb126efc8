# SPDX-License-Identifier: Apache-2.0
"""A worker that can be made to fail: the real one, with engines that fail on demand. python -m <this module>

ORIN_FI holds a fault: cuda700@step:20, hang@step:20, nan@step:5, oom@alloc:1; steps count from the worker's first one.
ORIN_FI=file:PATH takes faults from a file as they appear there, each once, and counts from then. ORIN_FI=degraded makes
the engine say that it is slow, ORIN_FI=leak makes it keep some memory at every step. ORIN_FI_DELAY makes every step
last so many seconds. The worker that is shipped refuses ORIN_FI and has none of this.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import numpy as np

from orinkit.engines import ENGINES
from orinkit.engines.base import Caches, Engine, Float32, Profile, StepInputs
from orinkit.errors import DeviceError
from orinkit.model import ModelSpec
from orinkit.runtime.pipeline import HostPipeline
from orinkit.serve import worker
from toolkit.runtime.fake_program import open_fake

_SPEC = re.compile(r"(cuda|hang|nan|oom)(\d*)@(step|alloc):(\d+)")


class Faults:
    """What is to happen, and when."""

    def __init__(self, given: str, delay: float) -> None:
        self.is_leaking = given == "leak"
        self._path = Path(given[5:]) if given.startswith("file:") else None
        self._left: dict[str, tuple[str, int, int]] = {}
        self.delay = delay
        if self._path is None and given and not self.is_leaking:
            self._take(given)

    def _take(self, text: str) -> None:
        match = _SPEC.fullmatch(text.strip())
        assert match is not None, text
        kind, code, place, count = match.groups()
        self._left[place] = (kind, int(code or 2), int(count))

    def at(self, place: str) -> tuple[str, int] | None:
        """The fault that is due at this step or allocation."""
        if self._path is not None and self._path.exists():
            text = self._path.read_text()
            self._path.unlink()
            self._take(text)
        if place not in self._left:
            return None
        kind, code, count = self._left[place]
        self._left[place] = (kind, code, count - 1)
        if count > 1:
            return None
        del self._left[place]
        return kind, code


class FaultyContext:
    def __init__(self, inner: Any, faults: Faults) -> None:
        self._inner, self._faults = inner, faults
        self._kept: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def run(self, inputs: StepInputs) -> Float32:
        time.sleep(self._faults.delay)
        if self._faults.is_leaking:
            self._kept.append(b"x" * (1 << 18))
        due = self._faults.at("step")
        if due is not None and due[0] == "hang":
            time.sleep(3600)
        if due is not None and due[0] in ("cuda", "oom"):
            raise DeviceError(f"CUDA error {due[1]}, injected", due[1])
        logits: Float32 = self._inner.run(inputs)
        if hasattr(self._inner, "engine"):
            self._inner.engine.seen.clear()
        return np.full_like(logits, np.nan) if due is not None else logits


class FaultyEngine:
    def __init__(self, inner: Engine, faults: Faults) -> None:
        self._inner, self._faults = inner, faults

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def caches(self, *arguments: Any) -> Caches:
        due = self._faults.at("alloc")
        if due is not None:
            raise DeviceError(f"CUDA error {due[1]}, injected", due[1])
        return self._inner.caches(*arguments)

    def context(self, profile: Profile, caches: Caches) -> Any:
        return FaultyContext(self._inner.context(profile, caches), self._faults)


def main() -> None:
    given = os.environ.pop("ORIN_FI", "")
    if given == "degraded":
        HostPipeline.degraded = "a capture failed"  # type: ignore[assignment]
        given = ""
    faults = Faults(given, float(os.environ.pop("ORIN_FI_DELAY", "0")))

    def faulty(opened: Any) -> Any:
        def open_faulty(graph: Path, model: ModelSpec) -> Any:
            return FaultyEngine(opened(graph, model), faults)

        return open_faulty

    for name, opened in {**ENGINES, "fake": open_fake}.items():
        ENGINES[name] = faulty(opened)
    worker.main()


if __name__ == "__main__":
    main()
