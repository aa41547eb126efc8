# SPDX-License-Identifier: Apache-2.0
"""Network, profiles, builder."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass
from typing import Any

from .enums import DataType, MemoryPoolType, NetworkDefinitionCreationFlag
from .interfaces import IHostMemory, ILogger, IPluginRegistry, IProgressMonitor
from .settings import SETTINGS, VERSION, number

Shape = tuple[int, ...]
MAGIC = b"standin plan\n"


@dataclass
class ITensor:
    name: str
    shape: Shape
    dtype: DataType


class INetworkDefinition:
    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.inputs: list[ITensor] = []
        self.outputs: list[ITensor] = []
        self.graph = b""

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    def get_input(self, index: int) -> ITensor:
        return self.inputs[index]


class IOptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[Shape, Shape, Shape]] = {}

    def set_shape(self, input: str, min: Shape, opt: Shape, max: Shape) -> None:  # noqa: A002
        if not all(0 < a <= b <= c for a, b, c in zip(min, opt, max, strict=True)):
            raise RuntimeError("Shape provided for opt is inconsistent with other shapes.")
        self.shapes[input] = min, opt, max


class ITimingCache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> IHostMemory:
        return IHostMemory(f"standin cache of {VERSION}".encode())


class IBuilderConfig:
    def __init__(self) -> None:
        self.builder_optimization_level = 3
        self.max_aux_streams = -1
        self.progress_monitor: IProgressMonitor | None = None
        self.limits: dict[MemoryPoolType, int] = {}
        self.profiles: list[IOptimizationProfile] = []

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        self.limits[pool] = pool_size

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return ITimingCache(bytes(serialized_timing_cache))

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:  # noqa: ARG002
        return cache.content in (b"", f"standin cache of {VERSION}".encode())


class Builder:
    def __init__(self, logger: ILogger) -> None:
        self.logger = logger

    def get_plugin_registry(self) -> IPluginRegistry:
        return IPluginRegistry(self.logger)

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        return INetworkDefinition(flags)

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
        problem = self._problem(network, config)
        if problem is None and _advance(config.progress_monitor):
            header = {
                "version": VERSION,
                "sm": int(SETTINGS.get("sm", 87)),
                "aux": min(int(SETTINGS.get("aux", 0)), max(config.max_aux_streams, 0)),
                "profiles": [profile.shapes for profile in config.profiles],
            }
            return IHostMemory(MAGIC + json.dumps(header).encode() + b"\n" + network.graph)
        self.logger.log(ILogger.ERROR, problem or "Builder: cancelled by the progress monitor")
        return None

    def _problem(self, network: INetworkDefinition, config: IBuilderConfig) -> str | None:
        flag = 1 << int(NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        if number(VERSION) < (11, 0) and not network.flags & flag:
            return "the network is not strongly typed"
        if not network.inputs:
            return "the network has no inputs"
        if set(config.limits) != set(MemoryPoolType):
            return "on an integrated GPU the default limit of TACTIC_DRAM takes most of the memory"
        if len(config.profiles) < 2:
            return f"expected a profile of prefill and one of decode, found {len(config.profiles)}"
        varying = {tensor.name for tensor in network.inputs if -1 in tensor.shape}
        for index, profile in enumerate(config.profiles):
            if set(profile.shapes) != varying:
                return f"Network has dynamic inputs without a range in profile {index}"
        return None


def _advance(monitor: IProgressMonitor | None) -> bool:
    """Play the phases of a build, and its end as the settings say."""
    ending: Any = SETTINGS.get("build")
    steps = 3
    if monitor is not None:
        monitor.phase_start("Building Engine", None, steps)
    for step in range(steps):
        if ending == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if ending == "crashed":
            os.kill(os.getpid(), signal.SIGABRT)
        if ending == "hangs":
            time.sleep(600)
        if ending == "refused":
            return False
        if monitor is not None and not monitor.step_complete("Building Engine", step):
            return False
    if monitor is not None:
        monitor.phase_finish("Building Engine")
    return True
