# SPDX-License-Identifier: Apache-2.0
"""Facts of a machine from recorded trees, and which bundle is for which machine."""

from __future__ import annotations

import os
import platform
from dataclasses import replace
from pathlib import Path

import pytest

from orinkit import target
from orinkit.engines import machine
from orinkit.engines.machine import Machine, System
from orinkit.errors import BundleError

TARGETS = Path(__file__).parents[3] / "targets"
JETPACK_6 = target.read(TARGETS / "agx-orin-64gb-jetpack-6.2.yaml")
DRIVE = target.read(TARGETS / "drive-agx-orin-drive-os-6.5.yaml")
HOST = target.read(TARGETS / "host.yaml")
BOARD = Machine(System("aarch64", "tegra234", "36.4.3"), 87, "12.6", "12.6", "10.3.0")

RELEASE = (
    "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025"
)
COMPATIBLE = b"nvidia,p3737-0000+p3701-0005\0nvidia,p3701-0005\0nvidia,tegra234\0"


def test_a_jetson_tells_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "etc/nv_tegra_release").write_text(RELEASE + "\n", encoding="ascii")
    (tmp_path / "proc/device-tree/compatible").write_bytes(COMPATIBLE)
    assert machine.read_system(tmp_path) == System(platform.machine(), "tegra234", "36.4.3")


def test_any_other_machine_tells_little(tmp_path: Path) -> None:
    assert machine.read_system(tmp_path) == System(os.uname().machine, "", "")


@pytest.mark.parametrize("l4t", ["36.4", "36.4.0", "36.4.7", "36.5.0"])
def test_a_bundle_for_this_system(l4t: str) -> None:
    found = replace(BOARD, system=replace(BOARD.system, l4t=l4t))
    machine.check_system(found.system, JETPACK_6)
    machine.check_machine(found, JETPACK_6)


@pytest.mark.parametrize(
    ("system", "message"),
    [
        (System("x86_64", "", ""), "expected a aarch64 system, found x86_64"),
        (System("aarch64", "tegra234", ""), r"expected Jetson Linux 36\.4 or 36\.5, found none"),
        (System("aarch64", "tegra234", "36.40"), r"found 36\.40"),
        (System("aarch64", "tegra234", "39.2.0"), r"found 39\.2\.0; export the bundle with the --target of this board"),
    ],
)
def test_a_bundle_for_another_system(system: System, message: str) -> None:
    with pytest.raises(BundleError, match=f"bundle for agx-orin-64gb-jetpack-6.2: .*{message}"):
        machine.check_system(system, JETPACK_6)


def test_a_bundle_for_a_host_has_no_plan() -> None:
    with pytest.raises(BundleError, match="expected a bundle for a board with TensorRT, found one for host"):
        machine.check_system(BOARD.system, HOST)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sm": 110}, r"expected a GPU of compute capability 8\.7, found 11\.0"),
        ({"tensorrt": "10.16.2.10"}, r"expected TensorRT 10\.3\.0\.30, found 10\.16\.2\.10"),
        ({"tensorrt": "10.30.0"}, r"found 10\.30\.0"),
        ({"tensorrt": ""}, "expected TensorRT"),
    ],
)
def test_a_bundle_for_another_machine(change: dict[str, object], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        machine.check_machine(replace(BOARD, **change), JETPACK_6)  # type: ignore[arg-type]


def test_a_release_that_is_not_known_exactly_agrees_with_its_family() -> None:
    machine.check_machine(replace(BOARD, tensorrt="10.8.0.1"), DRIVE)
    with pytest.raises(BundleError):
        machine.check_machine(replace(BOARD, tensorrt="11.0.0"), DRIVE)


@pytest.mark.parametrize("content", [b"", b"\x7fELF GLIBC_2.17 GLIBC_2.9", b"\x7fELF GLIBC_2.35\0GLIBCXX_3.4.30"])
def test_a_library_for_this_system(content: bytes) -> None:
    machine.check_library(content, "2.35")


@pytest.mark.parametrize("content", [b"GLIBC_2.38", b"GLIBC_2.4\0GLIBC_3.0\0GLIBC_2.35"])
def test_a_library_that_needs_a_newer_system(content: bytes) -> None:
    with pytest.raises(BundleError, match=r"glibc 2\.35 or older, found one that needs (2\.38|3\.0)"):
        machine.check_library(content, "2.35")


def test_this_system_has_a_c_library() -> None:
    assert machine.agrees(machine.system_glibc(), platform.libc_ver()[1] or "0.0")
