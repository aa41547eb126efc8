# SPDX-License-Identifier: Apache-2.0
"""What the files of a system tell about it: board, releases, memory, power mode, clocks, permissions, disk.

Everything is read below a root folder, so that the tree of any machine can be looked at. A file that is not there or
does not say what it should leaves its fact empty: nothing here fails.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from orinkit.engines.machine import System, read_system
from orinkit.memory import system

NVPMODEL = "var/lib/nvpmodel/status"
POWER_MODES = "etc/nvpmodel.conf"
GPU_CLOCKS = ("sys/class/devfreq/17000000.gpu", "sys/class/devfreq/17000000.ga10b")
"""The GPU's clock on Orin, in two spellings of the device tree."""
GPU_DEVICES = ("dev/nvmap", "dev/nvhost-gpu", "dev/nvgpu/igpu0", "dev/nvidiactl")
GROUPS = ("video", "render")

TEGRA_SM = {"tegra194": 72, "tegra234": 87, "tegra264": 110}
"""Compute capability times ten of boards, which have no NVML that tells."""
MODULES = ("onnxruntime", "cuda.bindings", "onnx_ir", "tensorrt")

_PACKAGES = ("nvidia-jetpack", "libnvinfer11", "libnvinfer10", "libnvinfer8")


@dataclass(frozen=True)
class Clocks:
    """GPU clocks in MHz."""

    current: int
    lowest: int
    highest: int


@dataclass(frozen=True)
class Facts:
    """What is known of a machine; None or empty: not known."""

    system: System
    model: str = ""
    """Name of the board in its device tree."""
    memory: dict[str, int] = field(default_factory=dict)
    """The lines of /proc/meminfo in bytes, but for HugePages_*, which are numbers of pages."""
    packages: dict[str, str] = field(default_factory=dict)
    """Versions of the installed Debian packages that matter."""
    cuda: str = ""
    """Release of the toolkit in /usr/local/cuda."""
    driver: str = ""
    """Release of the kernel driver."""
    gpu_name: str = ""
    """Name of a GPU that the driver lists."""
    power_mode: str = ""
    power_modes: dict[int, str] = field(default_factory=dict)
    """Names of the board's power modes by number."""
    clocks: Clocks | None = None
    gpu_devices: dict[str, bool] = field(default_factory=dict)
    """Device files of the GPU that are there, and whether this user may read and write them."""
    groups: dict[str, bool] = field(default_factory=dict)
    """Groups that own the devices, and whether this user is in them."""
    is_root: bool = False
    disk_free: int | None = None
    """Free bytes where bundles and plans lie."""
    sm: int | None = None
    """Compute capability of the GPU times ten."""
    modules: dict[str, bool] = field(default_factory=dict)
    """Python modules that engines need, and whether they are installed."""

    @property
    def is_tegra(self) -> bool:
        """Whether GPU and CPU share one memory."""
        return self.system.soc.startswith("tegra")

    @property
    def is_drive(self) -> bool:
        """Orin without Jetson Linux: DRIVE OS."""
        return self.is_tegra and not self.system.l4t

    @property
    def tensorrt(self) -> str:
        """Release of the installed TensorRT, such as 10.3.0.30."""
        found = (self.packages.get(name, "") for name in _PACKAGES if name.startswith("libnvinfer"))
        return next((version.split("-")[0] for version in found if version), "")


def read_facts(
    root: Path = Path("/"),
    disk: Path | None = None,
    user: int | None = None,
    sm: int | None = None,
    is_installed: Callable[[str], bool] | None = None,
) -> Facts:
    """Facts of the system below `root`.

    `disk` is a folder on the disk that bundles lie on; `user` a user id, without it that of this process; `sm` what the
    driver says of the GPU's compute capability; `is_installed` tells of Python modules.
    """
    user = os.getuid() if user is None else user
    found = read_system(root)
    return Facts(
        system=found,
        model=_text(root / "proc/device-tree/model").strip("\0 \n"),
        memory=system.read(root),
        packages=_installed(root),
        cuda=_match(r'"cuda"\s*:\s*\{[^}]*"version"\s*:\s*"([\d.]+)"', root / "usr/local/cuda/version.json"),
        driver=_match(r"(?:for \w+\s+|Kernel Module\s+)(\d+\.[\d.]+)", root / "proc/driver/nvidia/version"),
        gpu_name=_gpu_name(root),
        power_mode=_match(r"pmode:0*(\d+)", root / NVPMODEL),
        power_modes=_power_modes(root),
        clocks=read_clocks(root),
        gpu_devices={name: os.access(root / name, os.R_OK | os.W_OK) for name in GPU_DEVICES if (root / name).exists()},
        groups=dict(_groups(root, user)),
        is_root=user == 0,
        disk_free=_free(disk or root),
        sm=TEGRA_SM.get(found.soc, sm),
        modules={name: (is_installed or _is_installed)(name) for name in MODULES},
    )


def _installed(root: Path) -> dict[str, str]:
    """Versions by package, of `_PACKAGES` only; the file has thousands."""
    found = {}
    for block in _text(root / "var/lib/dpkg/status").split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and not line.startswith(" "))
        if lines.get("Package") in _PACKAGES and lines.get("Status", "").endswith(" installed"):
            found[lines["Package"]] = lines.get("Version", "")
    return found


def _gpu_name(root: Path) -> str:
    for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        return _match(r"Model:\s+(.+)", path).strip()
    return ""


def _power_modes(root: Path) -> dict[int, str]:
    found = re.finditer(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>", _text(root / POWER_MODES))
    return {int(line[1]): line[2] for line in found}


def read_clocks(root: Path) -> Clocks | None:
    """Clocks of the GPU of an Orin."""
    for folder in GPU_CLOCKS:
        texts = [_text(root / folder / name).strip() for name in ("cur_freq", "min_freq", "max_freq")]
        if all(text.isdecimal() for text in texts):
            return Clocks(*(int(text) // 1_000_000 for text in texts))
    return None


def _groups(root: Path, user: int) -> Iterator[tuple[str, bool]]:
    """Each of GROUPS that exists, and whether the user is in it."""
    users = (line.split(":") for line in _text(root / "etc/passwd").splitlines())
    name, main = next(((row[0], row[3]) for row in users if len(row) > 3 and row[2] == str(user)), ("", ""))
    for row in (line.split(":") for line in _text(root / "etc/group").splitlines()):
        if len(row) > 3 and row[0] in GROUPS:
            yield row[0], bool(name) and (name in row[3].split(",") or row[2] == main)


def _free(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:  # a package that should hold the module is missing
        return False


def _match(pattern: str, path: Path) -> str:
    found = re.search(pattern, _text(path))
    return found[1] if found else ""


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""
