# SPDX-License-Identifier: Apache-2.0
"""Temperature, power and clocks, as far as the kernel of this board tells them through sysfs.

thermal/thermal_zone*/{type,temp}     millidegrees Celsius
hwmon/hwmon*/{in,curr}N_input, inN_label   millivolt and milliampere of a rail (INA3221 on a Jetson)
devfreq/*/cur_freq                    hertz
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from orinkit.serve.metrics import Labels


def gauges(root: Path) -> dict[str, Mapping[Labels, float]]:
    """What there is below `root`, usually /sys/class; a board that tells nothing gives nothing."""
    read: dict[str, Callable[[Path], Iterator[tuple[Labels, float]]]] = {
        "orin_temperature_celsius": _temperatures,
        "orin_power_watts": _powers,
        "orin_clock_hertz": _clocks,
    }
    found = {name: dict(how(root)) for name, how in read.items()}
    return {name: values for name, values in found.items() if values}


def _temperatures(root: Path) -> Iterator[tuple[Labels, float]]:
    for zone in sorted(root.glob("thermal/thermal_zone*")):
        kind, value = _text(zone / "type"), _number(zone / "temp")
        if kind and value is not None:
            yield (("zone", kind),), value / 1e3


def _powers(root: Path) -> Iterator[tuple[Labels, float]]:
    for label in sorted(root.glob("hwmon/hwmon*/in[1-9]_label")):
        rail, channel = _text(label), label.name[2]
        volts, amperes = (
            _number(label.with_name(f"in{channel}_input")),
            _number(label.with_name(f"curr{channel}_input")),
        )
        if rail and volts is not None and amperes is not None:
            yield (("rail", rail),), volts * amperes / 1e6


def _clocks(root: Path) -> Iterator[tuple[Labels, float]]:
    for unit in sorted(root.glob("devfreq/*")):
        value = _number(unit / "cur_freq")
        if value is not None:
            yield (("unit", unit.name),), value


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _number(path: Path) -> float | None:
    text = _text(path)
    return float(text) if text.lstrip("-").isdigit() else None
