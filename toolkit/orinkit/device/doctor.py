# SPDX-License-Identifier: Apache-2.0
"""Looks a machine over: each rule is a function of the facts that says ok, warn or bad, what was found and what to do.

A rule that does not concern the machine says nothing. Sources of the floors: NVIDIA's product security bulletins 5716,
5797, 5836 and 5855, TensorRT's release notes, and reports of users; what is not verified is told as "reported".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from orinkit.device.facts import Facts
from orinkit.engines.machine import agrees
from orinkit.memory import system
from orinkit.memory.fit import LEAST_RESERVE, RESERVE_SHARE

Level = Literal["ok", "warn", "bad"]

GB = 1e9
LEAST_DISK, GOOD_DISK = 2e9, 16e9
"""Free bytes of the disk that bundles and plans lie on: below the first nothing fits, below the second no large one."""


LEAST_SM = 80
"""Compute capability times ten that the kernels are written for."""

ENGINES = {"onnxruntime": ("onnxruntime",), "cuda": ("cuda.bindings", "onnx_ir"), "tensorrt": ("tensorrt",)}
"""Python modules that each engine needs."""


@dataclass(frozen=True)
class Finding:
    """What one rule says."""

    name: str
    level: Level
    found: str
    advice: str = ""
    """What to do; empty where all is well."""


Findings = Iterator[Finding]


def examine(facts: Facts) -> tuple[Finding, ...]:
    """All findings, in the order of the rules."""
    return tuple(finding for rule in RULES for finding in rule(facts))


def board(facts: Facts) -> Findings:
    """What machine it is."""
    yield Finding("machine", "ok", facts.model or f"{facts.system.machine}, no board that is known")


def release(facts: Facts) -> Findings:
    """Jetson Linux: which releases have what orinkit needs, and which have known faults."""
    l4t = facts.system.l4t
    if not l4t:
        return
    name = "Jetson Linux"
    number = _number(l4t)
    if number < (36, 4):
        why = "its TensorRT is older than 10.0 and takes no plugins of today"
        yield Finding(name, "bad", l4t, f"{why}: install JetPack 6.2 (36.4 or later) or 7.2 (39.2)")
    elif (37,) <= number < (39, 2):
        yield Finding(name, "bad", l4t, "this release is for Thor only: install JetPack 6.2 or 7.2 on an Orin")
    elif number < (36, 4, 6):
        advice = "NvMap has a known hole (CVE-2025-33177): upgrade to 36.4.7 or later, and trust no other program on it"
        yield Finding(name, "warn", l4t, advice)
    elif (36, 4, 7) <= number < (37,):
        advice = "single allocations of 1 GB and more are reported to fail: orinkit asks for at most 256 MiB at once"
        yield Finding(name, "ok", l4t, f"{advice}; where other programs have fragmented the memory, restart the board")
    else:
        yield Finding(name, "ok", l4t)


def jetpack(facts: Facts) -> Findings:
    """The package that stands for all of JetPack, which need not be installed."""
    version = facts.packages.get("nvidia-jetpack")
    if version:
        yield Finding("JetPack", "ok", version)


def gpu(facts: Facts) -> Findings:
    """Whether there is a GPU and a driver that this user may use."""
    if not facts.gpu_devices:
        advice = "the engines cuda and tensorrt cannot run; in a container, start it with --runtime nvidia"
        yield Finding("GPU", "warn", "no device files of an NVIDIA driver", advice)
        return
    shut = sorted(name for name, is_open in facts.gpu_devices.items() if not is_open)
    what = ", ".join(filter(None, (facts.gpu_name, f"driver {facts.driver}" if facts.driver else ""))) or "found"
    if facts.sm is not None:
        what += f", compute capability {facts.sm / 10:.1f}"
    if facts.sm is not None and facts.sm < LEAST_SM:
        yield Finding("GPU", "bad", what, "orinkit's kernels need 8.0 or later: use --engine onnxruntime")
    elif shut:
        advice = "this user may not use them: see the groups below, then log in again"
        yield Finding("GPU", "bad", f"{what}; closed: {', '.join(f'/{name}' for name in shut)}", advice)
    else:
        yield Finding("GPU", "ok", what)


def groups(facts: Facts) -> Findings:
    """Membership in the groups that own the GPU's devices."""
    missing = sorted(name for name, is_in in facts.groups.items() if not is_in)
    if facts.is_root or not facts.gpu_devices or not facts.groups:
        return
    if missing:
        advice = f"run: sudo usermod -aG {','.join(missing)} $USER, then log in again"
        yield Finding("groups", "warn", f"not in {', '.join(missing)}", advice)
    else:
        yield Finding("groups", "ok", f"in {', '.join(sorted(facts.groups))}")


def engines(facts: Facts) -> Findings:
    """Which engines have their Python modules."""
    ready = [name for name, needed in ENGINES.items() if all(facts.modules.get(module) for module in needed)]
    if ready:
        yield Finding("engines", "ok", f"modules installed for {', '.join(ready)}")
    else:
        yield Finding("engines", "bad", "no engine has its Python modules", "run: pip install onnxruntime")


def cuda(facts: Facts) -> Findings:
    """The CUDA toolkit; orinkit itself needs the driver only."""
    if facts.cuda:
        is_known = not facts.system.l4t or any(agrees(facts.cuda, known) for known in ("12.6", "13.2"))
        advice = "" if is_known else "JetPack 6.2 has 12.6 and 7.2 has 13.2; bindings of another release may not load"
        yield Finding("CUDA", "ok" if is_known else "warn", facts.cuda, advice)


def tensorrt(facts: Facts) -> Findings:
    """Releases of TensorRT by what is known to be wrong with them."""
    version = facts.tensorrt
    if not version:
        if facts.is_tegra:
            advice = "install it with: sudo apt install tensorrt python3-libnvinfer; without it use --engine cuda"
            yield Finding("TensorRT", "warn", "not installed", advice)
        return
    number = _number(version)
    if number < (10,):
        yield Finding("TensorRT", "bad", version, "orinkit's plugins need 10.3 or later: install JetPack 6.2 or 7.2")
        return
    notes = []
    if number < (10, 8):
        notes.append(
            "results of several profiles are reported to differ (fixed in 10.8): run selftest after each build"
        )
    if number[:2] == (11, 0):
        notes.append("attention is reported to fail in it: use 10.16 or 11.4")
    if number < (10, 16, 1) or number[:2] == (11, 0):
        notes.append("it has known holes in reading plans: build every plan on this board, accept none from elsewhere")
    yield Finding("TensorRT", "warn" if notes else "ok", version, "; ".join(notes))


def memory(facts: Facts) -> Findings:
    """What is available now against the reserve that serving keeps."""
    total, available = facts.memory.get("MemTotal"), system.available(facts.memory)
    if total is None or available is None:
        yield Finding("memory", "warn", "/proc/meminfo does not tell", "check it by hand: free -h")
        return
    reserve = max(RESERVE_SHARE * total, LEAST_RESERVE)
    found = f"{available / GB:.1f} of {total / GB:.1f} GB available"
    allocatable = system.allocatable(facts.memory) if facts.is_tegra else None
    if allocatable is not None:
        found += f", {allocatable / GB:.1f} GB for the GPU by NVIDIA's formula"
    if "NvMapMemUsed" in facts.memory:
        found += f", {facts.memory['NvMapMemUsed'] / GB:.1f} GB held by it"
    if available < reserve:
        advice = f"requests are refused below {reserve / GB:.1f} GB: stop other programs (sudo init 3 stops a desktop)"
        yield Finding("memory", "bad", found, advice)
    elif available < total / 2:
        yield Finding("memory", "warn", found, "half of it is in use: stop other programs before a large model")
    else:
        yield Finding("memory", "ok", found)


def swap(facts: Facts) -> Findings:
    """Swap, which builds of plans on small boards need."""
    total, size = facts.memory.get("MemTotal", 0), facts.memory.get("SwapTotal", 0)
    if not facts.is_tegra or facts.is_drive:
        return
    if not size and total < 10 * GB:
        advice = "builds of plans may be killed: make a file of 8 GB on an NVMe disk and swap on it"
        yield Finding("swap", "warn", "none", advice)
    else:
        yield Finding("swap", "ok", f"{facts.memory.get('SwapFree', 0) / GB:.1f} of {size / GB:.1f} GB free")


def hugepages(facts: Facts) -> Findings:
    """Huge pages, which large models want on DRIVE OS."""
    if not facts.is_drive:
        return
    pages = facts.memory.get("HugePages_Total", 0)
    if pages:
        yield Finding("huge pages", "ok", f"{pages}")
    else:
        advice = "allocations for large models are reported to fail: sudo sysctl vm.nr_hugepages=2048"
        yield Finding("huge pages", "warn", "none", advice)


def power(facts: Facts) -> Findings:
    """The power mode; figures of this project's plans are for the fastest."""
    if not facts.system.l4t:
        return
    if not facts.power_mode:
        yield Finding("power mode", "warn", "not known", "look with: sudo nvpmodel -q")
        return
    number = int(facts.power_mode)
    name = facts.power_modes.get(number, f"number {number}")
    fastest = next((key for key, known in facts.power_modes.items() if known.startswith("MAXN")), 0)
    best = next((key for key, known in facts.power_modes.items() if known == "MAXN_SUPER"), fastest)
    if number == best:
        yield Finding("power mode", "ok", name)
    else:
        yield Finding("power mode", "warn", name, f"the fastest is: sudo nvpmodel -m {best} (needs cooling and supply)")


def clocks(facts: Facts) -> Findings:
    """Whether the GPU's clock is held at its highest."""
    if facts.clocks is None:
        return
    found = f"GPU {facts.clocks.current} MHz, from {facts.clocks.lowest} to {facts.clocks.highest}"
    if facts.clocks.lowest < facts.clocks.highest:
        yield Finding("clocks", "ok", found, "for even times hold it at the highest: sudo jetson_clocks")
    else:
        yield Finding("clocks", "ok", found)


def disk(facts: Facts) -> Findings:
    """Room for bundles and plans."""
    free = facts.disk_free
    if free is None:
        yield Finding("disk", "warn", "not known", "check it by hand: df -h")
        return
    found = f"{free / GB:.1f} GB free"
    if free < LEAST_DISK:
        yield Finding("disk", "bad", found, "no bundle fits: make room, or put bundles on another disk")
    elif free < GOOD_DISK:
        yield Finding("disk", "warn", found, "a bundle of 8 billion weights and its plan need about 12 GB")
    else:
        yield Finding("disk", "ok", found)


RULES: tuple[Callable[[Facts], Findings], ...] = (
    board,
    release,
    jetpack,
    gpu,
    groups,
    engines,
    cuda,
    tensorrt,
    memory,
    swap,
    hugepages,
    power,
    clocks,
    disk,
)


def _number(version: str) -> tuple[int, ...]:
    """10.3.0.30 as (10, 3, 0, 30); what is no number ends it."""
    parts = []
    for part in version.split("."):
        if not part.isdecimal():
            break
        parts.append(int(part))
    return tuple(parts)
