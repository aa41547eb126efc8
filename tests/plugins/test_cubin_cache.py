# SPDX-License-Identifier: Apache-2.0
"""cmake/compile_cubin.py compiles a source once, and again when anything that goes into it has changed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NVCC = """#!/bin/sh
echo call >> "$(dirname "$0")/calls"
while [ "$1" != -o ]; do shift; done
cp "$3" "$2"
echo "ptxas info: 0 bytes spill stores" >&2
"""


class Desk:
    """A source with a header, a stand-in for nvcc that copies the source, and a cache."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cache = folder, folder / "cache"
        (folder / "inner.cuh").write_text("// one\n")
        (folder / "kernel.cu").write_text('#include "inner.cuh"\n')
        (folder / "nvcc").write_text(NVCC)
        (folder / "nvcc").chmod(0o755)

    def compile(self, arch: int = 87) -> bytes:
        """The cubin."""
        out = self.folder / "out.cubin"
        words = [sys.executable, ROOT / "cmake/compile_cubin.py", self.folder / "kernel.cu", out, "--arch", arch]
        words += ["--compiler", self.folder / "nvcc", "--cache", self.cache]
        subprocess.run([*map(str, words)], check=True)
        assert out.with_suffix(".log").read_text() == "ptxas info: 0 bytes spill stores\n"
        return out.read_bytes()

    @property
    def calls(self) -> int:
        return len((self.folder / "calls").read_text().splitlines())


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    made = Desk(tmp_path)
    made.compile()
    return made


def test_the_same_again_is_not_compiled(desk: Desk) -> None:
    assert desk.compile() == (desk.folder / "kernel.cu").read_bytes()
    assert desk.calls == 1


CHANGES: dict[str, Callable[[Desk], object]] = {
    "source": lambda desk: (desk.folder / "kernel.cu").write_text('#include "inner.cuh"\n// more\n'),
    "header": lambda desk: (desk.folder / "inner.cuh").write_text("// two\n"),
    "compiler": lambda desk: (desk.folder / "nvcc").write_text(f"{NVCC}# a later release\n"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_compiled_and_replaces_what_was_kept(change: Callable[[Desk], object], desk: Desk) -> None:
    change(desk)
    assert desk.compile() == (desk.folder / "kernel.cu").read_bytes()
    assert desk.calls == 2
    assert len(list(desk.cache.glob("*.cubin"))) == len(list(desk.cache.glob("*.log"))) == 1


def test_architectures_are_kept_apart(desk: Desk) -> None:
    desk.compile(80)
    desk.compile(87)
    assert desk.calls == 2
    assert len(list(desk.cache.glob("*.cubin"))) == 2


def test_a_failure_leaves_nothing_behind(desk: Desk) -> None:
    (desk.folder / "kernel.cu").write_text("// broken\n")
    (desk.folder / "nvcc").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(subprocess.CalledProcessError):
        desk.compile()
    assert len(list(desk.cache.iterdir())) == 2
