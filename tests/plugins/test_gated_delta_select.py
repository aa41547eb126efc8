# SPDX-License-Identifier: Apache-2.0
"""The choice of gated delta kernels and where chunks lie: host code, compiled and run here."""

from __future__ import annotations

import shutil
import subprocess
from itertools import pairwise
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
  std::printf("%d %d %d %d", choice.is_chunked, choice.is_split, choice.carry_tiles, orin::chunk_places(n[0], n[1]));
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


ORIN, H200 = 16, 132
CHOICES: dict[tuple[int, ...], list[int]] = {
    # tokens, sequences, value heads, dim, states of every token wanted, multiprocessors: by chunks, split, tiles
    (1, 1, 16, 128, 0, ORIN): [0, 0, 2],
    (1, 1, 16, 128, 0, H200): [0, 1, 1],
    (2, 2, 16, 128, 0, H200): [0, 1, 2],
    (3, 3, 16, 128, 0, H200): [0, 0, 2],
    (1, 1, 48, 128, 0, H200): [0, 0, 2],
    (1, 1, 4, 32, 0, H200): [0, 0, 1],
    (24, 1, 16, 128, 0, ORIN): [0, 0, 2],
    (25, 1, 16, 128, 0, ORIN): [1, 0, 2],
    (24, 1, 16, 128, 0, H200): [0, 1, 1],
    (25, 1, 16, 128, 0, H200): [1, 1, 1],
    (2048, 1, 16, 128, 0, H200): [1, 1, 1],
    (2048, 1, 16, 128, 1, H200): [0, 1, 1],
    (2048, 1, 16, 32, 0, H200): [0, 0, 1],
    (2048, 1, 16, 64, 0, H200): [1, 1, 1],
    (32, 32, 48, 128, 0, H200): [0, 0, 2],
    (48, 2, 32, 128, 0, H200): [0, 0, 2],
    (49, 2, 32, 128, 0, H200): [1, 0, 2],
}


@pytest.mark.parametrize("shape", CHOICES, ids=str)
def test_choices(shape: tuple[int, ...], program: Path) -> None:
    assert choose(program, *shape)[:3] == CHOICES[shape]


def test_places_hold_every_chunk(program: Path) -> None:
    """Chunks of sequence b begin at place cu_seqlens[b] // 64 + b: no two sequences meet, all fit."""
    for lengths in ([1], [64], [65, 64, 63], [0, 0, 128], [1] * 9, [130, 0, 62, 1], [640, 1, 63]):
        cu = [sum(lengths[:b]) for b in range(len(lengths) + 1)]
        for tail in (0, 1, 64):
            places = choose(program, cu[-1] + tail, len(lengths), 16, 128, 0, ORIN)[3]
            spans = [(cu[b] // 64 + b, cu[b] // 64 + b + -(-n // 64)) for b, n in enumerate([*lengths, tail])]
            assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))
            assert spans[-1][1] <= places
