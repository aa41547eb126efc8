# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from orinkit.device.facts import Clocks, read_facts
from orinkit.engines.machine import System
from toolkit.device.trees import DESKTOP, ORIN, write


def test_a_board(tmp_path: Path) -> None:
    facts = read_facts(write(tmp_path, ORIN), user=1000)
    assert (facts.system.soc, facts.system.l4t) == ("tegra234", "36.4.7")
    assert facts.model == "NVIDIA Jetson AGX Orin Developer Kit"
    assert facts.memory["MemTotal"] == 64349628 * 1024
    assert facts.memory["HugePages_Total"] == 0
    assert facts.packages == {"nvidia-jetpack": "6.2.1+b38", "libnvinfer10": "10.3.0.30-1+cuda12.5"}
    assert (facts.tensorrt, facts.cuda, facts.sm) == ("10.3.0.30", "12.6.11", 87)
    assert facts.power_mode == "0"
    assert facts.power_modes == {0: "MAXN", 1: "MODE_15W", 2: "MODE_30W"}
    assert facts.clocks == Clocks(1300, 1300, 1300)
    assert facts.gpu_devices == {"dev/nvmap": True, "dev/nvgpu/igpu0": True}
    assert facts.groups == {"video": True, "render": True}
    assert facts.is_tegra
    assert not facts.is_drive
    assert facts.disk_free is not None


def test_a_machine_with_a_card(tmp_path: Path) -> None:
    facts = read_facts(write(tmp_path, DESKTOP), user=1000, sm=90)
    assert (facts.driver, facts.gpu_name, facts.sm) == ("580.159.04", "NVIDIA H200", 90)
    assert not facts.is_tegra


def test_an_empty_tree_tells_nothing(tmp_path: Path) -> None:
    facts = read_facts(tmp_path, disk=tmp_path / "not there", user=1000, is_installed=lambda _: False)
    assert facts.system == System(facts.system.machine, "", "")
    assert not any([facts.memory, facts.packages, facts.tensorrt, facts.power_modes, facts.groups])
    assert facts.clocks is None
    assert facts.disk_free is None
    assert not any(facts.modules.values())


def test_a_user_may_own_a_group_by_its_number(tmp_path: Path) -> None:
    passwd = "nvidia:x:1000:44::/home/nvidia:/bin/bash\n"
    group = "video:x:44:\nrender:x:104:other,nvidia2\n"
    facts = read_facts(write(tmp_path, ORIN, {"etc/passwd": passwd, "etc/group": group}), user=1000)
    assert facts.groups == {"video": True, "render": False}


@pytest.mark.parametrize("name", [name for name in ORIN if not name.startswith(("dev/", "etc/passwd"))])
def test_files_of_noise_are_taken_for_nothing(name: str, tmp_path: Path) -> None:
    root = write(tmp_path, ORIN)
    (root / name).write_bytes(bytes(range(256)))
    read_facts(root, user=1000)


def test_installed_modules_are_found(tmp_path: Path) -> None:
    facts = read_facts(tmp_path)
    assert facts.modules["onnx_ir"]
    assert not read_facts(tmp_path, is_installed=lambda name: name == "tensorrt").modules["onnx_ir"]
