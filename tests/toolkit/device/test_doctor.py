# SPDX-License-Identifier: Apache-2.0
"""Each rule on trees of files, and on facts where no file tells."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from orinkit.device.doctor import Finding, examine
from orinkit.device.facts import Facts, read_facts
from toolkit.device.trees import DESKTOP, ORIN, write

Changed = Mapping[str, str | None]
ALL = {"onnxruntime": True, "cuda.bindings": True, "onnx_ir": True, "tensorrt": True}


def facts(root: Path, changed: Changed | None = None, files: Mapping[str, str] = ORIN) -> Facts:
    found = read_facts(write(root, files, changed), user=1000)
    return replace(found, modules=ALL, disk_free=200 * 10**9)


def finding(given: Facts, name: str) -> Finding:
    (found,) = (finding for finding in examine(given) if finding.name == name)
    return found


def names(given: Facts) -> list[str]:
    return [finding.name for finding in examine(given)]


def l4t(release: str) -> str:
    major, _, rest = release.partition(".")
    return f"# R{major} (release), REVISION: {rest}, GCID: 1, BOARD: generic, EABI: aarch64\n"


def tensorrt(version: str) -> str:
    package = f"libnvinfer{version.split('.')[0]}"
    return f"Package: {package}\nStatus: install ok installed\nVersion: {version}-1+cuda12.5\n"


def meminfo(**gigabytes: float) -> str:
    return "".join(f"{name}: {int(size * 1e9 / 1024)} kB\n" for name, size in gigabytes.items())


def test_a_good_board_needs_nothing_but_care_with_foreign_plans(tmp_path: Path) -> None:
    found = examine(facts(tmp_path))
    assert [entry.name for entry in found if entry.level != "ok"] == ["TensorRT"]
    assert "build every plan on this board" in finding(facts(tmp_path), "TensorRT").advice
    assert "huge pages" not in names(facts(tmp_path))


def test_a_card_in_a_desktop_is_fine(tmp_path: Path) -> None:
    found = examine(replace(facts(tmp_path, files=DESKTOP), sm=90))
    assert {entry.level for entry in found} == {"ok"}
    assert [entry.name for entry in found] == ["machine", "GPU", "engines", "memory", "disk"]
    assert (
        "NVIDIA H200, driver 580.159.04, compute capability 9.0"
        in finding(replace(facts(tmp_path, files=DESKTOP), sm=90), "GPU").found
    )


@pytest.mark.parametrize(
    ("release", "level", "advice"),
    [
        ("35.6.0", "bad", "older than 10.0"),
        ("36.3.0", "bad", "older than 10.0"),
        ("36.4.0", "warn", "CVE-2025-33177"),
        ("36.4.4", "warn", "CVE-2025-33177"),
        ("36.4.7", "ok", "single allocations of 1 GB"),
        ("36.5.0", "ok", "single allocations of 1 GB"),
        ("38.2.0", "bad", "Thor only"),
        ("38.4.0", "bad", "Thor only"),
        ("39.2.0", "ok", ""),
        ("39.2.1", "ok", ""),
    ],
)
def test_releases_of_jetson_linux(release: str, level: str, advice: str, tmp_path: Path) -> None:
    found = finding(facts(tmp_path, {"etc/nv_tegra_release": l4t(release)}), "Jetson Linux")
    assert (found.level, found.found) == (level, release)
    assert advice in found.advice
    assert bool(found.advice) == bool(advice)


@pytest.mark.parametrize(
    ("version", "level", "advice"),
    [
        ("8.6.2.3", "bad", "need 10.3 or later"),
        ("10.3.0.30", "warn", "fixed in 10.8"),
        ("10.7.0.23", "warn", "fixed in 10.8"),
        ("10.13.3.9", "warn", "known holes"),
        ("10.16.0.10", "warn", "known holes"),
        ("10.16.2.10", "ok", ""),
        ("11.0.0.1", "warn", "attention is reported to fail"),
        ("11.4.1.1", "ok", ""),
    ],
)
def test_releases_of_tensorrt(version: str, level: str, advice: str, tmp_path: Path) -> None:
    found = finding(facts(tmp_path, {"var/lib/dpkg/status": tensorrt(version)}), "TensorRT")
    assert (found.level, found.found) == (level, version)
    assert advice in found.advice


def test_a_board_without_tensorrt_is_told_of_the_other_engine(tmp_path: Path) -> None:
    found = finding(facts(tmp_path, {"var/lib/dpkg/status": None}), "TensorRT")
    assert found.level == "warn"
    assert "--engine cuda" in found.advice


@pytest.mark.parametrize(
    ("available", "level"), [(60.0, "ok"), (30.0, "warn"), (6.7, "warn"), (6.4, "bad"), (0.2, "bad")]
)
def test_available_memory(available: float, level: str, tmp_path: Path) -> None:
    text = meminfo(MemTotal=65, MemFree=1, MemAvailable=available, SwapTotal=0, SwapFree=0)
    found = finding(facts(tmp_path, {"proc/meminfo": text}), "memory")
    assert (found.level, found.found.split(" of ")[0]) == (level, f"{available}")


def test_half_a_gibibyte_stays_free_on_a_small_board(tmp_path: Path) -> None:
    text = meminfo(MemTotal=3.4, MemFree=0.1, MemAvailable=0.5, SwapTotal=2, SwapFree=2)
    assert finding(facts(tmp_path, {"proc/meminfo": text}), "memory").level == "bad"


def test_what_nvmap_holds_is_told(tmp_path: Path) -> None:
    assert "1.0 GB held by it" in finding(facts(tmp_path), "memory").found


def test_a_system_that_does_not_tell_its_memory(tmp_path: Path) -> None:
    assert finding(facts(tmp_path, {"proc/meminfo": None}), "memory").level == "warn"


def test_a_small_board_wants_swap(tmp_path: Path) -> None:
    small = meminfo(MemTotal=7.9, MemFree=5, MemAvailable=6, SwapTotal=0, SwapFree=0)
    found = finding(facts(tmp_path, {"proc/meminfo": small}), "swap")
    assert (found.level, found.found) == ("warn", "none")
    assert finding(facts(tmp_path), "swap").level == "ok"


@pytest.mark.parametrize(("pages", "level"), [("0", "warn"), ("2048", "ok")])
def test_drive_os_wants_huge_pages(pages: str, level: str, tmp_path: Path) -> None:
    text = meminfo(MemTotal=30, MemFree=20, MemAvailable=25) + f"HugePages_Total: {pages}\n"
    given = facts(tmp_path, {"etc/nv_tegra_release": None, "proc/meminfo": text})
    assert finding(given, "huge pages").level == level
    assert not {"swap", "Jetson Linux", "power mode"} & set(names(given))


@pytest.mark.parametrize(
    ("status", "modes", "level", "advice"),
    [
        ("pmode:0000", ORIN["etc/nvpmodel.conf"], "ok", ""),
        ("pmode:0002", ORIN["etc/nvpmodel.conf"], "warn", "sudo nvpmodel -m 0"),
        ("pmode:0000", "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n", "warn", "-m 2"),
        ("pmode:0002", "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n", "ok", ""),
        (None, ORIN["etc/nvpmodel.conf"], "warn", "nvpmodel -q"),
        ("pmode:0001", None, "warn", "-m 0"),
    ],
)
def test_power_modes(status: str | None, modes: str | None, level: str, advice: str, tmp_path: Path) -> None:
    given = facts(tmp_path, {"var/lib/nvpmodel/status": status, "etc/nvpmodel.conf": modes})
    found = finding(given, "power mode")
    assert found.level == level
    assert advice in found.advice


def test_a_clock_that_may_fall_is_told(tmp_path: Path) -> None:
    found = finding(facts(tmp_path, {"sys/class/devfreq/17000000.gpu/min_freq": "306000000"}), "clocks")
    assert found.found == "GPU 1300 MHz, from 306 to 1300"
    assert "jetson_clocks" in found.advice


def test_a_user_outside_the_groups(tmp_path: Path) -> None:
    found = finding(facts(tmp_path, {"etc/group": "video:x:44:nvidia\nrender:x:104:\n"}), "groups")
    assert (found.level, found.found) == ("warn", "not in render")
    assert "usermod -aG render" in found.advice
    root = replace(facts(tmp_path), is_root=True)
    assert "groups" not in names(root)


def test_devices_that_are_shut(tmp_path: Path) -> None:
    given = replace(facts(tmp_path), gpu_devices={"dev/nvmap": False, "dev/nvgpu/igpu0": True})
    found = finding(given, "GPU")
    assert found.level == "bad"
    assert "closed: /dev/nvmap" in found.found


def test_an_old_gpu(tmp_path: Path) -> None:
    compatible = {"proc/device-tree/compatible": "nvidia,jetson-xavier\0nvidia,tegra194\0"}
    found = finding(facts(tmp_path, compatible), "GPU")
    assert found.level == "bad"
    assert "8.0 or later" in found.advice


@pytest.mark.parametrize(
    ("modules", "level", "found"),
    [
        ({"onnxruntime": True}, "ok", "modules installed for onnxruntime"),
        ({"cuda.bindings": True, "onnx_ir": True, "tensorrt": True}, "ok", "modules installed for cuda, tensorrt"),
        ({"cuda.bindings": True}, "bad", "no engine has its Python modules"),
    ],
)
def test_modules_of_the_engines(modules: dict[str, bool], level: str, found: str, tmp_path: Path) -> None:
    told = finding(replace(facts(tmp_path), modules=modules), "engines")
    assert (told.level, told.found) == (level, found)


@pytest.mark.parametrize(("free", "level"), [(10**9, "bad"), (5 * 10**9, "warn"), (50 * 10**9, "ok"), (None, "warn")])
def test_disk(free: int | None, level: str, tmp_path: Path) -> None:
    assert finding(replace(facts(tmp_path), disk_free=free), "disk").level == level


@pytest.mark.parametrize(("version", "level"), [("12.6.11", "ok"), ("13.2.1", "ok"), ("12.2.140", "warn")])
def test_releases_of_cuda(version: str, level: str, tmp_path: Path) -> None:
    text = json.dumps({"cuda": {"name": "CUDA SDK", "version": version}})
    assert finding(facts(tmp_path, {"usr/local/cuda/version.json": text}), "CUDA").level == level


@pytest.mark.parametrize("level", ["ok", "warn", "bad"])
def test_whatever_is_not_fine_says_what_to_do(level: str, tmp_path: Path) -> None:
    worst = facts(
        tmp_path,
        {
            "etc/nv_tegra_release": l4t("35.4"),
            "var/lib/dpkg/status": tensorrt("8.5"),
            "proc/meminfo": meminfo(MemTotal=4, MemFree=0.1, MemAvailable=0.1, SwapTotal=0, SwapFree=0),
            "var/lib/nvpmodel/status": "pmode:0001",
            "etc/group": "video:x:44:\n",
            "dev/nvmap": None,
            "dev/nvgpu/igpu0": None,
        },
    )
    found = [entry for entry in examine(worst) if entry.level == level]
    assert found
    assert level == "ok" or all(entry.advice for entry in found)
