# SPDX-License-Identifier: Apache-2.0
"""select.h of attention: splits and tiles for an Orin and an H200, without either."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

PLUGINS = Path(__file__).parents[2] / "plugins"
PROGRAM = """
#include <cstdio>
#include <cstdlib>
#include "kernels/attention/select.h"
int main(int, char** v) {
  const auto i = [&](int n) { return std::atoi(v[n]); };
  const orin::Device device{i(1), i(2), i(3), i(4)};
  const auto c = orin::choose_attention({i(5), i(6), i(7), i(8), i(9), i(10), i(11), i(12), i(13) != 0}, device);
  std::printf("%d %d %d %d %d %d %d %d %d %d", c.is_decode, c.shared_bytes, c.rows, c.row_tiles, c.splits, c.warps,
              c.keys, c.blocks, c.descending, c.launches);
}
"""
ORIN = (87, 16, 4 << 20, 163 << 10)
H200 = (90, 132, 60 << 20, 227 << 10)
NAMES = (
    "is_decode",
    "shared_bytes",
    "rows",
    "row_tiles",
    "splits",
    "warps",
    "keys",
    "blocks",
    "descending",
    "launches",
)
Choose = Callable[..., dict[str, int]]


@pytest.fixture(scope="module")
def choose(tmp_path_factory: pytest.TempPathFactory) -> Choose:
    """choose(device, tokens, sequences, max_step, max_length, heads, kv_heads, head_dim, window, int8)."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    folder = tmp_path_factory.mktemp("select")
    (folder / "choose.cpp").write_text(PROGRAM, encoding="utf-8")
    command = [compiler, "-std=c++17", "-Wall", "-Werror", f"-I{PLUGINS}", "choose.cpp", "-o", "choose"]
    subprocess.run(command, cwd=folder, check=True)

    def call(device: tuple[int, ...], *shape: int) -> dict[str, int]:
        done = subprocess.run([folder / "choose", *map(str, (*device, *shape))], capture_output=True, check=True)
        return dict(zip(NAMES, map(int, done.stdout.split()), strict=True))

    return call


@pytest.mark.parametrize("length", [8192, 32768])
@pytest.mark.parametrize(("device", "sms"), [(ORIN, 16), (H200, 132)], ids=["orin", "h200"])
def test_a_long_sequence_fills_the_gpu(device: tuple[int, ...], sms: int, length: int, choose: Choose) -> None:
    choice = choose(device, 1, 1, 1, length, 8, 2, 256, 0, 0)
    assert choice["is_decode"]
    assert 0.9 * sms <= 2 * choice["splits"] <= sms


@pytest.mark.parametrize("sequences", [1, 2, 3, 8, 33, 64])
@pytest.mark.parametrize("device", [ORIN, H200], ids=["orin", "h200"])
def test_decode_waves_are_nearly_full(device: tuple[int, ...], sequences: int, choose: Choose) -> None:
    choice = choose(device, sequences, sequences, 1, 32768, 8, 2, 256, 0, 0)
    blocks, at_once = sequences * 2 * choice["splits"], device[1]
    assert blocks / (-(-blocks // at_once) * at_once) >= 0.85


def test_short_sequences_are_not_split(choose: Choose) -> None:
    assert choose(H200, 1, 1, 1, 64, 8, 2, 256, 0, 0)["splits"] == 1
    assert choose(H200, 1, 1, 1, 128, 32, 8, 128, 0, 0)["splits"] == 1


def test_a_window_bounds_the_splits(choose: Choose) -> None:
    windowed, short = (choose(H200, 1, 1, 1, n, 8, 2, 256, w, 0)["splits"] for n, w in ((1 << 18, 1024), (1025, 0)))
    assert windowed == short


@pytest.mark.parametrize(
    ("tokens", "heads", "kv_heads", "rows", "row_tiles"), [(1, 8, 2, 8, 1), (2, 8, 1, 16, 1), (16, 32, 8, 16, 4)]
)
def test_row_tiles(tokens: int, heads: int, kv_heads: int, rows: int, row_tiles: int, choose: Choose) -> None:
    choice = choose(ORIN, tokens, 1, tokens, 4096, heads, kv_heads, 128, 0, 0)
    assert (choice["rows"], choice["row_tiles"]) == (rows, row_tiles)


@pytest.mark.parametrize("device", [ORIN, H200], ids=["orin", "h200"])
@pytest.mark.parametrize(
    ("tokens", "sequences", "max_step", "length", "window", "launches"),
    [
        (1, 1, 1, 8192, 0, 1),
        (16, 1, 16, 8192, 0, 1),
        (32, 1, 32, 8192, 0, 2),
        (32, 1, 32, 639, 0, 0),
        (32, 1, 32, 8192, 512, 0),
        (32, 1, 32, 8192, 1024, 2),
        (512, 1, 512, 8192, 0, 0),
        (512, 64, 32, 8192, 0, 0),
    ],
    ids=["one token", "one launch", "two", "few keys", "window", "wide window", "many tokens", "many sequences"],
)
def test_some_steps_of_more_tokens_are_several_launches(
    device: tuple[int, ...],
    tokens: int,
    sequences: int,
    max_step: int,
    length: int,
    window: int,
    launches: int,
    choose: Choose,
) -> None:
    """Where the keys are many and the step alone would leave most of the GPU idle; else, 0 here, by prefill."""
    choice = choose(device, tokens, sequences, max_step, length, 8, 2, 256, window, 0)
    assert (choice["is_decode"], choice["launches"]) == (int(launches > 0), launches)
    assert not launches or (choice["rows"], choice["row_tiles"]) == ((8, 1) if max_step == 1 else (16, 4))


@pytest.mark.parametrize("int8", [0, 1])
@pytest.mark.parametrize("tokens", [1, 16, 17, 32, 2048])
@pytest.mark.parametrize("dim", [64, 96, 128, 256])
def test_shared_memory_fits_an_orin(dim: int, tokens: int, int8: int, choose: Choose) -> None:
    choice = choose(ORIN, tokens, 1, tokens, 4096, 8, 2, dim, 0, int8)
    assert 0 < choice["shared_bytes"] <= (163 << 10) - 1024


@pytest.mark.parametrize(
    ("device", "tokens", "heads", "warps"),
    [(ORIN, 2048, 8, 8), (ORIN, 64, 8, 8), (H200, 2048, 8, 4), (H200, 8192, 8, 8), (H200, 2048, 16, 4)],
)
def test_prefill_tiles(device: tuple[int, ...], tokens: int, heads: int, warps: int, choose: Choose) -> None:
    choice = choose(device, tokens, 1, tokens, tokens, heads, heads // 4, 256, 0, 0)
    assert choice["warps"] == warps
    assert choice["shared_bytes"] * 8 // warps <= device[3]
    assert choice["blocks"] == heads // 4 * (tokens * 4 // (16 * warps) + 1)


def test_the_longest_tiles_start_first(choose: Choose) -> None:
    many = choose(H200, 8192, 1, 8192, 8192, 32, 8, 128, 0, 0)
    assert many["descending"] == many["blocks"]
    few = choose(H200, 1024, 1, 1024, 1024, 8, 2, 256, 0, 0)
    assert few["descending"] == 132
