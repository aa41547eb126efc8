# SPDX-License-Identifier: Apache-2.0
"""The choice of gated delta kernels and where chunks lie: host code, compiled and run here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

PLUGINS = Path(__file__).parents[2] / "plugins"
PROGRAM = """
#include <cstdio>
#include <cstdlib>
#include "kernels/gated_delta/select.h"
int main(int, char** argv) {
  int n[6];
  for (int i = 0; i < 6; ++i) n[i] = std::atoi(argv[i + 1]);
  orin::Device device;
  device.sm_count = n[5];
  const auto choice = orin::choose_gated_delta(n[0], n[1], n[2], n[3], n[4], device);
  std::printf("%d %d %d", choice.is_chunked, choice.state_warps, orin::chunk_places(n[0], n[1]));
}
"""

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("select")
    (folder / "main.cpp").write_text(PROGRAM, encoding="utf-8")
    command = ["g++", "-std=c++17", "-Wall", "-Werror", f"-I{PLUGINS}", str(folder / "main.cpp"), "-o"]
    subprocess.run([*command, str(folder / "main")], check=True)
    return folder / "main"


def choose(program: Path, *numbers: int) -> list[int]:
    done = subprocess.run([str(program), *map(str, numbers)], check=True, capture_output=True, text=True)
    return [int(word) for word in done.stdout.split()]
