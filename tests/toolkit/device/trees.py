# SPDX-License-Identifier: Apache-2.0
"""Small trees of system files, written as the documents of their vendors describe them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

MODES = """< PM_CONFIG DEFAULT=2 >
< POWER_MODEL ID=0 NAME=MAXN >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=MODE_15W >
< POWER_MODEL ID=2 NAME=MODE_30W >
"""

ORIN: Mapping[str, str] = {
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.7, GCID: 42132812, BOARD: generic, EABI: aarch64\n",
    "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
    "proc/device-tree/compatible": "nvidia,p3737-0000+p3701-0005\0nvidia,tegra234\0",
    "proc/meminfo": (
        "MemTotal:       64349628 kB\nMemFree:        50000000 kB\nMemAvailable:   58000000 kB\n"
        "SwapTotal:      32174812 kB\nSwapFree:       32174812 kB\nHugePages_Total:       0\n"
        "NvMapMemUsed:    1024000 kB\n"
    ),
    "var/lib/dpkg/status": (
        "Package: nvidia-jetpack\nStatus: install ok installed\nVersion: 6.2.1+b38\n\n"
        "Package: libnvinfer10\nStatus: install ok installed\nVersion: 10.3.0.30-1+cuda12.5\n\n"
        "Package: libnvinfer8\nStatus: deinstall ok config-files\nVersion: 8.6.2.3-1+cuda12.2\n"
    ),
    "usr/local/cuda/version.json": '{"cuda": {"name": "CUDA SDK", "version": "12.6.11"}}',
    "var/lib/nvpmodel/status": "pmode:0000",
    "etc/nvpmodel.conf": MODES,
    "sys/class/devfreq/17000000.gpu/cur_freq": "1300500000\n",
    "sys/class/devfreq/17000000.gpu/min_freq": "1300500000\n",
    "sys/class/devfreq/17000000.gpu/max_freq": "1300500000\n",
    "dev/nvmap": "",
    "dev/nvgpu/igpu0": "",
    "etc/passwd": "root:x:0:0:root:/root:/bin/bash\nnvidia:x:1000:1000::/home/nvidia:/bin/bash\n",
    "etc/group": "root:x:0:\nvideo:x:44:nvidia\nrender:x:104:nvidia\nnvidia:x:1000:\n",
}
"""An AGX Orin with JetPack 6.2.1 on which all is well, and user 1000."""

DESKTOP: Mapping[str, str] = {
    "proc/meminfo": "MemTotal: 131072000 kB\nMemFree: 90000000 kB\nMemAvailable: 120000000 kB\n",
    "proc/driver/nvidia/version": (
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build\nGCC version:  gcc 12\n"
    ),
    "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA H200\nIRQ:   \t\t 130\n",
    "dev/nvidiactl": "",
}


def write(root: Path, files: Mapping[str, str], changed: Mapping[str, str | None] | None = None) -> Path:
    """The tree with some files changed, or left out (None)."""
    for name, text in {**files, **(changed or {})}.items():
        if text is not None:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return root
