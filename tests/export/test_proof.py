# SPDX-License-Identifier: Apache-2.0
"""What a library may ask of its target. The libraries that are built are proved in tests/plugins/tensorrt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orinkit import target as targets
from orinkit.errors import ArtefactError
from orinkit.target import Target
from orinkit_export import elf, proof

ROOT = Path(__file__).parents[2]
DRIVE = targets.read(ROOT / "targets/drive-agx-orin-drive-os-6.5.yaml")
JETSON = targets.read(ROOT / "targets/agx-orin-64gb-jetpack-7.2.yaml")
GOOD = elf.Library(
    machine="aarch64",
    needed=("libdl.so.2", "libstdc++.so.6", "libc.so.6", "ld-linux-aarch64.so.1"),
    run_path=(),
    versions=("GLIBC_2.17", "GLIBC_2.31", "GLIBCXX_3.4.28"),
    exports=proof.ENTRY_POINTS,
    cubins=(87, 87),
)


PLUGINS, KERNELS = "liborin_plugins.so", "liborin_kernels.so"


@pytest.mark.parametrize("target", [DRIVE, JETSON], ids=lambda target: target.stack.id)
def test_a_good_library_is_taken(target: Target) -> None:
    assert proof.complaints(GOOD, target, PLUGINS, proof.MAX_BYTES) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"machine": "x86_64"}, "expected machine aarch64, found x86_64"),
        ({"needed": ("libcudart.so.12", "libc.so.6")}, "found libcudart.so.12"),
        ({"needed": ("libnvinfer.so.10",)}, "found libnvinfer.so.10"),
        ({"run_path": ("/usr/local/cuda",)}, "expected no run path, found /usr/local/cuda"),
        ({"versions": ("GLIBC_2.34",)}, "expected glibc 2.31 or older, found 2.34"),
        ({"versions": ("GLIBCXX_3.4.29",)}, "expected GLIBCXX 3.4.28 or older, found 3.4.29"),
        ({"cubins": (80, 86)}, "expected device code for sm_87, found sm_80, sm_86"),
        ({"cubins": ()}, "expected device code for sm_87, found none"),
        ({"exports": frozenset({"getCreators"})}, "found getCreators"),
        ({"exports": proof.ENTRY_POINTS | {"x"}}, "found getCreators, setLoggerFinder, x"),
    ],
)
def test_what_a_target_does_not_have_is_refused(change: dict[str, Any], sentence: str) -> None:
    (found,) = proof.complaints(replace(GOOD, **change), DRIVE, PLUGINS, 7)
    assert sentence in found


def test_a_later_system_may_be_asked_for_more() -> None:
    asks = replace(GOOD, versions=("GLIBC_2.39", "GLIBCXX_3.4.32"))
    assert proof.complaints(asks, JETSON, PLUGINS, 7) == []


def test_a_large_library_is_refused() -> None:
    (found,) = proof.complaints(GOOD, DRIVE, PLUGINS, proof.MAX_BYTES + 1)
    assert found == "expected at most 15000000 bytes, found 15000001"


def test_only_the_plugin_library_is_told_what_to_export() -> None:
    assert proof.complaints(replace(GOOD, exports=frozenset({"orin_init"})), DRIVE, KERNELS, 7) == []


def test_a_file_that_is_no_library_is_refused(tmp_path: Path) -> None:
    (tmp_path / PLUGINS).write_bytes(b"text")
    with pytest.raises(ArtefactError, match="expected a 64-bit shared library"):
        proof.prove(tmp_path / PLUGINS, DRIVE)
