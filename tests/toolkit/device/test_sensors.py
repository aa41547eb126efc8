# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from orinkit.device.sensors import MONITORS, Reading, Sensors
from toolkit.device.trees import ORIN, write

RAILS = f"{MONITORS}/1-0040/hwmon/hwmon4"
BOARD = {
    **ORIN,
    f"{RAILS}/in1_label": "VDD_GPU_SOC\n",
    f"{RAILS}/in1_input": "19000\n",
    f"{RAILS}/curr1_input": "400\n",
    f"{RAILS}/in2_label": "VDD_CPU_CV\n",
    f"{RAILS}/in2_input": "19000\n",
    f"{RAILS}/curr2_input": "100\n",
    f"{RAILS}/in3_label": "NC\n",
    f"{RAILS}/in3_input": "19000\n",
    f"{RAILS}/curr3_input": "900\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "70000\n",
    "sys/class/thermal/thermal_zone1/type": "gpu-thermal\n",
    "sys/class/thermal/thermal_zone1/temp": "51250\n",
    "sys/kernel/debug/bpmp/debug/clk/emc/rate": "3199000000\n",
}


def test_a_board_without_an_input_rail_adds_its_rails_up(tmp_path: Path) -> None:
    found = Sensors(write(tmp_path, BOARD)).read()
    assert found.power_w == pytest.approx(9.5)
    assert found == Reading(found.power_w, 1300, 3199, 51.25, None)


def test_an_input_rail_is_all_of_it(tmp_path: Path) -> None:
    found = Sensors(write(tmp_path, BOARD, {f"{RAILS}/in1_label": "VDD_IN"})).read()
    assert found.power_w == pytest.approx(7.6)


def test_files_that_are_missing_or_hold_no_number_are_not_known(tmp_path: Path) -> None:
    changed = {f"{RAILS}/in1_input": "?", f"{RAILS}/curr2_input": None, "sys/class/thermal/thermal_zone1/temp": ""}
    root = write(tmp_path, BOARD, {**changed, "sys/class/devfreq/17000000.gpu/cur_freq": None})
    assert Sensors(root).read() == Reading(memory_mhz=3199)


def test_a_machine_without_monitors_and_nvml(tmp_path: Path) -> None:
    sensors = Sensors(tmp_path, nvml="libno-such-library.so")
    assert sensors.card is None
    assert sensors.read() == Reading()


@pytest.mark.gpu
def test_a_card(tmp_path: Path) -> None:
    sensors = Sensors(tmp_path)
    if sensors.card is None:
        pytest.skip("needs an NVIDIA GPU with NVML")
    assert sensors.card.sm >= 50
    assert sensors.card.name
    found = sensors.read()
    assert found.gpu_memory_bytes is not None
    assert found.gpu_mhz is not None
    assert found.gpu_mhz > 0
