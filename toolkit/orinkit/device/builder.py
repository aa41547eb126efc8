# SPDX-License-Identifier: Apache-2.0
"""The child of `orin-run build`: the only code that drives TensorRT's builder, in a process that may be killed.

It talks in lines of JSON. Standard input brings a `Job` after it has told what machine this is; messages go to the
descriptor that its first argument names, because TensorRT writes to the standard ones what it likes:

    {"machine": ...}               first
    {"phase": ..., "done": ...}    as TensorRT advances; done is a share, 0 to 1
    {"error": ..., "kind": ...}    or
    {"built": true}                last: the plan lies at the job's output
"""

from __future__ import annotations

import base64
import ctypes
import hmac
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorrt as trt

from orinkit import config, errors
from orinkit.bundle import files
from orinkit.engines import plan_key
from orinkit.engines.plans import BuildOptions
from orinkit.engines.trt_library import Log, exceptions_told, load_plugins, read_machine
from orinkit.errors import EngineError, GraphError, OrinError

_PDEATHSIG = 1
"""PR_SET_PDEATHSIG of prctl(2)."""
_OOM_SCORE = "500"
"""Of all processes, the build is the one to be killed when memory runs out."""
_MAX_CACHE = 256 << 20

Report = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Range:
    """Sizes that one input may have in one profile: the least, the one to optimise for, the largest."""

    name: str
    least: int
    typical: int
    largest: int


@dataclass(frozen=True)
class Job:
    """Everything that a build needs."""

    graph: str
    """The deploy graph in base64."""
    plugins: str
    """Path of the plugin library."""
    output: str
    """Path of an existing file that becomes the plan."""
    timing_cache: str
    """Path of the timing cache, which need not exist."""
    key: str
    """Of this board's plans, in hexadecimal."""
    options: BuildOptions
    profiles: tuple[tuple[Range, ...], ...]
    workspace_bytes: int
    tactic_bytes: int


class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
    """Tells of TensorRT's phases. Its outermost phase counts; the ones inside only name what is done."""

    def __init__(self, report: Report) -> None:
        super().__init__()
        self._report = report
        self._outer: tuple[str, int] | None = None
        self._done = 0.0

    def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None:
        """Called by TensorRT; `parent_phase` is None or empty for the outermost."""
        if not parent_phase:
            self._outer = phase_name, max(1, num_steps)
        self._report({"phase": phase_name, "done": self._done})

    def step_complete(self, phase_name: str, step: int) -> bool:
        """Called by TensorRT; True lets the build go on."""
        if self._outer is not None and phase_name == self._outer[0]:
            self._done = min(1.0, (step + 1) / self._outer[1])
            self._report({"phase": phase_name, "done": self._done})
        return True

    def phase_finish(self, phase_name: str) -> None:
        """Called by TensorRT."""


def build(job: Job, report: Report) -> None:
    """Write the plan of `job` to its output. Raises BundleError, GraphError, EngineError."""
    log = Log()
    builder: trt.Builder = trt.Builder(log)
    load_plugins(builder.get_plugin_registry(), Path(job.plugins), log)
    strongly_typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network: trt.INetworkDefinition = builder.create_network(strongly_typed)
    _parse(network, base64.b64decode(job.graph), log)
    settings: trt.IBuilderConfig = builder.create_builder_config()
    settings.builder_optimization_level = job.options.optimization_level
    settings.max_aux_streams = job.options.aux_streams
    # On unified memory TensorRT would otherwise take most of what the system has.
    settings.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job.workspace_bytes)
    settings.set_memory_pool_limit(trt.MemoryPoolType.TACTIC_DRAM, job.tactic_bytes)
    settings.progress_monitor = Monitor(report)
    for ranges in job.profiles:
        _add_profile(builder, settings, network, ranges, log)
    key = bytes.fromhex(job.key)
    cache = _timing_cache(settings, Path(job.timing_cache), key)
    plan: trt.IHostMemory | None = builder.build_serialized_network(network, settings)
    if plan is None:
        raise EngineError(f"TensorRT cannot build the plan: {log.reason()}")
    _write(Path(job.output), plan)
    if cache is not None:
        _write_cache(Path(job.timing_cache), cache, key)


def _parse(network: trt.INetworkDefinition, graph: bytes, log: Log) -> None:
    parser: trt.OnnxParser = trt.OnnxParser(network, log)
    if parser.parse(graph):
        return
    found = []
    for index in range(min(3, parser.num_errors)):
        error: trt.ParserError = parser.get_error(index)
        found.append(f"{error.node_name() or 'the graph'} ({error.node_operator() or '-'}): {error.desc()}")
    raise GraphError(
        f"TensorRT's parser refuses the deploy graph: {'; '.join(found) or log.reason()}; export the bundle again for "
        "the TensorRT of this board"
    )


def _add_profile(
    builder: trt.Builder,
    settings: trt.IBuilderConfig,
    network: trt.INetworkDefinition,
    ranges: tuple[Range, ...],
    log: Log,
) -> None:
    """One profile: the inputs of `ranges` vary; every other input has the one shape that the graph states."""
    profile: trt.IOptimizationProfile = builder.create_optimization_profile()
    for item in ranges:
        with exceptions_told(log, f"setting the sizes {item}"):
            profile.set_shape(item.name, (item.least,), (item.typical,), (item.largest,))
    varying = {item.name for item in ranges}
    for index in range(network.num_inputs):
        tensor: trt.ITensor = network.get_input(index)
        if -1 in tuple(tensor.shape) and tensor.name not in varying:
            raise GraphError(
                f"{tensor.name}: expected fixed sizes, found {tuple(tensor.shape)}; export the bundle again"
            )
    if settings.add_optimization_profile(profile) < 0:
        raise EngineError(f"TensorRT refuses the profile {ranges}; report this with: orin-run board-report")


def _timing_cache(settings: trt.IBuilderConfig, path: Path, key: bytes) -> trt.ITimingCache | None:
    """The cache of earlier builds here, or an empty one. The file is a code by `key` and what it vouches for; what this
    board did not write itself is ignored."""
    content = b""
    with suppress(OSError, OrinError), files.opened_folder(path.parent) as folder:
        raw = files.read_small(folder, path.name, _MAX_CACHE)
        code, rest = raw[: plan_key.SIZE], raw[plan_key.SIZE :]
        content = rest if hmac.compare_digest(code, plan_key.code(key, rest)) else b""
    for candidate in dict.fromkeys((content, b"")):
        cache: trt.ITimingCache | None = settings.create_timing_cache(candidate)
        if cache is not None and settings.set_timing_cache(cache, False):
            return cache
    return None


def _write(path: Path, plan: trt.IHostMemory) -> None:
    with path.open("r+b", buffering=0) as file:
        left = memoryview(plan)
        while left:
            left = left[file.write(left) :]


def _write_cache(path: Path, cache: trt.ITimingCache, key: bytes) -> None:
    serialized: trt.IHostMemory = cache.serialize()
    content = bytes(memoryview(serialized))
    with suppress(OSError, OrinError), files.replacing(path, files.part_of(path)) as file:
        file.write(plan_key.code(key, content) + content)


def _stay_harmless() -> None:
    """Be the first to be killed when memory runs out, and end with the parent."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE, encoding="ascii")
    ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def main() -> None:
    """Tell of the machine, take a job, do it."""
    _stay_harmless()
    with os.fdopen(int(sys.argv[1]), "w", encoding="utf-8") as messages:

        def report(message: Mapping[str, Any]) -> None:
            messages.write(json.dumps(message) + "\n")
            messages.flush()

        try:
            report({"machine": config.dump(read_machine(Path(sys.argv[2])))})
            line = sys.stdin.readline()
            if line:
                build(config.parse(json.loads(line), Job, "job"), report)
                report({"built": True})
        except OrinError as error:
            report({"error": str(error), "kind": type(error).__name__})
        except OSError as error:
            report({"error": f"writing the plan: {error.strerror}; free some space and try again", "kind": _KIND})


_KIND = errors.ResourceError.__name__

if __name__ == "__main__":
    main()
