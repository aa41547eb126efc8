# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

from orinkit.serve import board


def written(root: Path, **files: str) -> None:
    for name, content in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def test_a_board_tells_temperature_power_and_clocks(tmp_path: Path) -> None:
    written(
        tmp_path,
        thermal__thermal_zone0__type="gpu-thermal\n",
        thermal__thermal_zone0__temp="48250\n",
        thermal__thermal_zone1__type="cv0-thermal\n",
        thermal__thermal_zone1__temp="",
        hwmon__hwmon3__in1_label="VDD_GPU_SOC\n",
        hwmon__hwmon3__in1_input="19000\n",
        hwmon__hwmon3__curr1_input="500\n",
        devfreq__17000000_gpu__cur_freq="1300500000\n",
    )
    assert board.gauges(tmp_path) == {
        "orin_temperature_celsius": {(("zone", "gpu-thermal"),): 48.25},
        "orin_power_watts": {(("rail", "VDD_GPU_SOC"),): 9.5},
        "orin_clock_hertz": {(("unit", "17000000_gpu"),): 1300500000},
    }


def test_a_board_that_tells_nothing_has_no_gauges(tmp_path: Path) -> None:
    assert board.gauges(tmp_path) == {}
