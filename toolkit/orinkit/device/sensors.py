# SPDX-License-Identifier: Apache-2.0
"""Power, clocks, temperature and memory of the GPU, as far as this machine tells: sysfs on a Jetson, NVML elsewhere."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orinkit.device.facts import read_clocks
from orinkit.target import Gpu

MONITORS = "sys/bus/i2c/drivers/ina3221"
"""The power monitors of a Jetson: each has channels with a label, a voltage in mV and a current in mA."""
INPUT_RAILS = ("VDD_IN", "SYS_VIN_HV")
"""Rails through which all power of a module or a kit comes in, where it has such a one."""
MEMORY_CLOCK = "sys/kernel/debug/bpmp/debug/clk/emc/rate"
"""Hz; only root may read it."""
ZONES = "sys/class/thermal"

NVML = "libnvidia-ml.so.1"
LAUNCH_US = 4.3
"""Microseconds that a kernel of a captured step costs on a card; seen on an H200."""
L2_MIB = 40.0
"""NVML does not tell it and no prediction uses it."""
_SM_CLOCK, _MEMORY_CLOCK, _TEMPERATURE_GPU = 1, 2, 0


@dataclass(frozen=True)
class Reading:
    """One look; None: this machine does not tell."""

    power_w: float | None = None
    """Of the whole module on a Jetson, of the card elsewhere."""
    gpu_mhz: int | None = None
    memory_mhz: int | None = None
    temperature_c: float | None = None
    gpu_memory_bytes: int | None = None
    """In use on a card, by all programs; a Jetson shares the system's memory."""


@dataclass(frozen=True)
class Card:
    """What NVML tells of a GPU that it knows."""

    name: str
    sm: int
    """Compute capability times ten."""
    driver: str
    gpu: Gpu | None
    """Its facts for predictions, where NVML tells them all."""


class Sensors:
    """The sensors of the system below `root`."""

    def __init__(self, root: Path = Path("/"), nvml: str = NVML) -> None:
        """`nvml` is the library that is tried where there are no power monitors."""
        self._root = root
        self._card = None if (root / MONITORS).is_dir() else _open_card(nvml)

    @property
    def card(self) -> Card | None:
        """The first GPU that NVML knows."""
        return self._card.card if self._card else None

    def read(self) -> Reading:
        """What the sensors say now."""
        return self._card.read() if self._card else self._read_board()

    def _read_board(self) -> Reading:
        clocks = read_clocks(self._root)
        memory = _number(self._root / MEMORY_CLOCK)
        return Reading(
            power_w=_board_power(self._root),
            gpu_mhz=clocks.current if clocks else None,
            memory_mhz=None if memory is None else memory // 1_000_000,
            temperature_c=_board_temperature(self._root),
        )


def _board_power(root: Path) -> float | None:
    """Watts of the input rail; without one the sum of all rails, which leaves out what is not monitored."""
    rails: dict[str, float] = {}
    for label in sorted((root / MONITORS).glob("*/hwmon/hwmon*/in[123]_label")):
        channel = label.name[2]
        volts, amperes = (_number(label.with_name(f"{kind}{channel}_input")) for kind in ("in", "curr"))
        name = _text(label)
        if volts is not None and amperes is not None and name != "NC":
            rails[name] = volts * amperes / 1e6
    found = [rails[name] for name in INPUT_RAILS if name in rails]
    return found[0] if found else sum(rails.values()) if rails else None


def _board_temperature(root: Path) -> float | None:
    for zone in sorted((root / ZONES).glob("thermal_zone*/type")):
        if _text(zone).lower() in ("gpu-thermal", "tj-thermal"):
            value = _number(zone.with_name("temp"))
            if value is not None:
                return value / 1000
    return None


class _NvmlCard:
    """The first GPU through NVML, by ctypes: every call gives 0 or an error number."""

    def __init__(self, library: Any, handle: ctypes.c_void_p) -> None:
        self._library, self._handle = library, handle
        major, minor = ctypes.c_int(), ctypes.c_int()
        library.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor))
        name, driver = ctypes.create_string_buffer(96), ctypes.create_string_buffer(80)
        library.nvmlDeviceGetName(handle, name, ctypes.c_uint(len(name)))
        library.nvmlSystemGetDriverVersion(driver, ctypes.c_uint(len(driver)))
        sm = 10 * major.value + minor.value
        self.card = Card(name.value.decode(), sm, driver.value.decode(), self._gpu(sm))

    def read(self) -> Reading:
        power = self._unsigned("nvmlDeviceGetPowerUsage")
        temperature = self._unsigned("nvmlDeviceGetTemperature", _TEMPERATURE_GPU)
        memory = (ctypes.c_ulonglong * 3)()
        has_memory = self._memory(memory) == 0
        return Reading(
            power_w=None if power is None else power / 1000,
            gpu_mhz=self._unsigned("nvmlDeviceGetClockInfo", _SM_CLOCK),
            memory_mhz=self._unsigned("nvmlDeviceGetClockInfo", _MEMORY_CLOCK),
            temperature_c=None if temperature is None else float(temperature),
            gpu_memory_bytes=int(memory[2]) if has_memory else None,
        )

    def _gpu(self, sm: int) -> Gpu | None:
        """Bandwidth is that of memory which moves two bits in a clock."""
        clock = self._unsigned("nvmlDeviceGetMaxClockInfo", _SM_CLOCK)
        memory_clock = self._unsigned("nvmlDeviceGetMaxClockInfo", _MEMORY_CLOCK)
        width, cores = self._unsigned("nvmlDeviceGetMemoryBusWidth"), self._unsigned("nvmlDeviceGetNumGpuCores")
        memory = (ctypes.c_ulonglong * 3)()
        if not (clock and memory_clock and width and cores) or self._memory(memory):
            return None
        bandwidth = 2 * memory_clock * 1e6 * width / 8 / 1e9
        cores_of_sm = 64 if sm == 80 else 128
        return Gpu(sm, cores // cores_of_sm, L2_MIB, memory[0] / 2**30, bandwidth, clock_mhz=clock, launch_us=LAUNCH_US)

    def _memory(self, into: Any) -> int:
        """nvmlMemory_t: total, free, used."""
        return int(self._library.nvmlDeviceGetMemoryInfo(self._handle, ctypes.byref(into)))

    def _unsigned(self, function: str, *arguments: int) -> int | None:
        value = ctypes.c_uint()
        code = getattr(self._library, function)(self._handle, *map(ctypes.c_int, arguments), ctypes.byref(value))
        return value.value if code == 0 else None


def _open_card(nvml: str) -> _NvmlCard | None:
    try:
        library = ctypes.CDLL(nvml)
    except OSError:
        return None
    handle = ctypes.c_void_p()
    if library.nvmlInit_v2() or library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(0), ctypes.byref(handle)):
        return None
    return _NvmlCard(library, handle)


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.removeprefix("-").isdecimal() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
