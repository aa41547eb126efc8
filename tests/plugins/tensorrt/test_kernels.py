# SPDX-License-Identifier: Apache-2.0
"""The kernel library of every stack, built here and run where it belongs: emulated, beside a stand-in for the driver.

Nothing of TensorRT is needed for that.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from orinkit_export import crossbuild, elf, proof
from plugin_library import BOARDS, NATIVE, ROOT, Library, library, program, target_of

HEADERS = ROOT / "plugins/kernels"
LAUNCHERS = sorted(
    name
    for path in HEADERS.glob("*/launch.h")
    for name in re.findall(r"^ORIN_ABI\(\w+, (\w+),", path.read_text(encoding="utf-8"), re.MULTILINE)
)
MODULES = sorted(path.stem for path in HEADERS.glob("*/*.cu"))
STACKS = (*BOARDS, NATIVE)


def said(kernels: Library, *, stub: bool = True) -> list[dict[str, Any]]:
    return kernels.run(program("kernels_host.cpp", kernels.machine), kernels.path, *LAUNCHERS, stub=stub)


@pytest.mark.parametrize("stack", STACKS)
def test_the_library_is_what_its_record_says(stack: str) -> None:
    kernels = library(stack, "liborin_kernels.so")
    record = crossbuild.read(kernels.path.parent, target_of(stack))
    found = next(entry for entry in record.libraries if entry.name == kernels.path.name)
    assert found == proof.prove(kernels.path, target_of(stack))
    assert (found.machine, found.archs) == (kernels.machine, (87,))
    assert found.size < proof.MAX_BYTES
    assert len(elf.read(kernels.path).cubins) == len(MODULES)


@pytest.mark.parametrize("stack", STACKS)
def test_every_kernel_is_in_the_device_code_of_orin(stack: str) -> None:
    """orin_init loads every module and finds every kernel in it; the stand-in takes only code for sm_87."""
    first, *_ = said(library(stack, "liborin_kernels.so"))
    assert first == {"init": 0, "error": "no error", "arch": 87, "sm_count": 16}


@pytest.mark.parametrize("stack", BOARDS)
def test_the_abi_is_the_same_as_on_this_machine(stack: str) -> None:
    assert said(library(stack, "liborin_kernels.so")) == said(library(NATIVE, "liborin_kernels.so"))


@pytest.mark.parametrize("stack", BOARDS)
def test_without_a_driver_the_library_says_so(stack: str) -> None:
    first, *_ = said(library(stack, "liborin_kernels.so"), stub=False)
    assert first["error"] == "libcuda.so.1 was not found; install the NVIDIA driver"


def test_what_is_exported_is_ours(tmp_path: Path) -> None:
    exports = elf.read(library(NATIVE, "liborin_kernels.so").path).exports
    assert {name for name in exports if not name.startswith("orin_")} == set()
    assert {f"orin_{name}" for name in LAUNCHERS} <= exports
